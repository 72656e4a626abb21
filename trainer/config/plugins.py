"""Models, optimisers, ops and so on of one's own, from a module or file that is named on the command line.

A plugin is a Python module with tables like ours, by the same names: `MODELS = {"tiny": Tiny}`. Its entries are added
to our tables, and a config names them like any other. A run remembers the plugins that it uses (`config.plugins`); it
never imports them by itself, so that nobody's run folder can make this process run code.

An installed package offers its module under the entry point group "linseed.plugins".
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from linseed.trainer.config.sections import PLUGIN_TABLES, TABLES
from linseed.trainer.data import augment
from linseed.trainer.errors import ConfigError

GROUP = "linseed.plugins"

_owners: dict[tuple[int, str], str] = {}  # (id of the table, name of the entry) -> plugin


def load(plugin: str) -> str:
    """Imports the module `plugin`, or the file where it ends in .py, and adds its entries; returns its name.

    Raises ConfigError, one line, where there is no such module, its import fails, it holds no table, or one of its
    names is taken.
    """
    module = _import(plugin)
    name = module.__name__
    found = {table: getattr(module, table) for table in PLUGIN_TABLES if isinstance(getattr(module, table, None), dict)}
    if not found:
        raise ConfigError(f"the plugin {plugin} has no table; define one of {', '.join(PLUGIN_TABLES)} in it, a dict")
    for table, entries in found.items():
        ours = PLUGIN_TABLES[table]
        for entry, value in entries.items():
            if _owners.get((id(ours), entry), "" if entry in ours else name) != name:
                raise ConfigError(
                    f"the plugin {plugin} defines {table}['{entry}'], which is taken; choose another name"
                )
            ours[entry] = value
            _owners[id(ours), entry] = name
    return name


def load_installed():
    """Loads the plugins of installed packages."""
    for point in importlib.metadata.entry_points(group=GROUP):
        load(point.value)


def used(values: Mapping) -> tuple[str, ...]:
    """The plugins that the entries of a config, by dotted key, come from."""
    return tuple(sorted(set(_used(values))))


def check_loaded(plugins):
    """Raises ConfigError, which names it, unless each of `plugins` was loaded."""
    for plugin in plugins:
        if plugin not in _owners.values():
            raise ConfigError(
                f"this config uses the plugin '{plugin}', which is not loaded; add --plugin={plugin}, "
                f"or --plugin=DIR/{plugin.rpartition('.')[2]}.py for a file"
            )


def _used(values) -> Iterator[str]:
    entries = [(table, values.get(f"{section}.name")) for section, table in TABLES.items()]
    entries += [(augment.OPS, op.name) for op in augment.parse(values["data.augment"])]
    for table, entry in entries:
        if (id(table), entry) in _owners:
            yield _owners[id(table), entry]


def _import(plugin):
    path = Path(plugin).expanduser()
    try:
        if path.suffix != ".py":
            return importlib.import_module(plugin)
        if not path.exists():
            raise ConfigError(f"no plugin file at {path}; check --plugin")
        if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) == str(path.resolve()):
            return sys.modules[path.stem]
        if path.stem in sys.modules:
            raise ConfigError(f"the plugin {path} has the name of another module, '{path.stem}'; rename the file")
        spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[path.stem]
            raise
        return module
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if error.name == plugin.partition(".")[0]:
            raise ConfigError(f"no module '{plugin}'; check --plugin, or give a file that ends in .py") from None
        raise ConfigError(f"the plugin {plugin} fails: {error}") from error
    except Exception as error:
        raise ConfigError(f"the plugin {plugin} fails: {type(error).__name__}: {error}") from error
