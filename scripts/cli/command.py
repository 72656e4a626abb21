"""What every command shares: flags, one-line errors and exit statuses.

0: done. 2: an error that the user can fix; the line on stderr says how. 75: another process of the run died. 128 + N:
stopped by signal N, see `trainer.runtime.signals`. After 75 or 128 + N the same command resumes the run.
"""

import contextlib
import errno
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable

from absl import app, flags

from linseed.scripts.cli import config_flag, heap, utf8
from linseed.scripts.cli.console import Console, printable
from linseed.trainer.errors import LinseedError, WorkdirError
from linseed.trainer.runtime import xla_flags
from linseed.trainer.runtime.signals import Stopped

DEBUG = flags.DEFINE_bool("debug", False, "Show the full traceback of an error, not only one line.")
PLUGIN = flags.DEFINE_multi_string(
    "plugin", [], "A module, or a FILE.py, with your own models, optimisers, ops and so on; may be repeated."
)


flags.disclaim_key_flags()  # a flag of `define_path` belongs to the module that calls it


class _Path(flags.ArgumentParser):
    def parse(self, argument):
        return os.path.expanduser(argument)


def define_path(name: str, default: str | None, help_text: str, *, many: bool = False):
    """Defines a flag for a path, or for several (`many`); `~` is the home folder."""
    if many:
        return flags.DEFINE_multi(_Path(), flags.ArgumentSerializer(), name, default, help_text)
    return flags.DEFINE(_Path(), name, default, help_text, serializer=flags.ArgumentSerializer())


def check_folder(path: str, *, flag: str):
    """Raises WorkdirError unless the file `path`, which the flag names, can be written into its folder."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise WorkdirError(f"--{flag}={path}: there is no folder {folder}; make it, or choose another --{flag}")
    if os.path.isdir(path) or not os.access(folder, os.W_OK | os.X_OK):
        raise WorkdirError(f"--{flag}={path} cannot be written; choose another --{flag}")


def run(
    main: Callable[..., None],
    *,
    needs: tuple[str, ...] = (),
    argument: str = "",
    default: str | None = None,
    many: bool = False,
):
    """Parses the flags, stops if one of `needs` is missing, and runs `main(console)`.

    argument: the name of the one positional argument, or of one or more (`many`), which `main` gets too; "" for none.
    default: its default; None makes it required. A command that needs `config` reads it with `config_flag.load`.
    """
    utf8.use()
    module = sys.modules[main.__module__]
    usage = _usage(needs, argument and (argument if default is None else f"[{argument}]") + many * " ...")

    def parse(argv):
        if {"--help", "-h", "-help"} & set(argv[1:]):
            with contextlib.suppress(BrokenPipeError):
                print(_help(module, usage), flush=True)
            sys.exit(0)
        try:
            rest = flags.FLAGS(config_flag.take(argv) if "config" in needs else argv)
        except (flags.Error, LinseedError) as error:
            _fail(str(error), error)
        missing = [name for name in needs if flags.FLAGS[name].value in (None, "")]
        if config_flag.PRINT.value and "config" in needs and "config" not in missing:
            missing = []
        if missing:
            _fail(f"--{missing[0]} is missing; the command is {usage}")
        if argument and len(rest) < 2 and default is None:
            _fail(f"{argument} is missing; the command is {usage}")
        if len(rest) > (2 if argument else 1) and not many:
            _fail(f"unexpected argument '{rest[-1]}'; the command is {usage}")
        return [*rest, default] if argument and len(rest) < 2 else rest

    def guarded(rest):
        _show_our_warnings_alone()
        heap.keep()
        xla_flags.use()
        try:
            _load_plugins()
            if config_flag.PRINT.value and "config" in needs:
                from linseed.trainer.config.canonical import flatten

                shown = (printable(f"{key} = {value!r}") for key, value in flatten(config_flag.load()))
                print(*shown, sep="\n")
                return
            main(Console(), *rest[1:])
        except LinseedError as error:
            _fail(str(error), error, status=error.status)
        except OSError as error:
            _fail(_one_line(error), error)
        except MemoryError as error:
            _fail("out of memory; lower config.data.batch_size, config.eval.batch_size or the image size", error)
        except Stopped as stopped:
            tell(str(stopped))
            sys.exit(stopped.status)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def _load_plugins():
    import importlib.metadata

    installed = importlib.metadata.entry_points(group="linseed.plugins")
    if not installed and not PLUGIN.value:
        return  # importing the tables takes seconds
    from linseed.trainer.config import plugins

    plugins.load_installed()
    for plugin in PLUGIN.value:
        plugins.load(plugin)


def _help(module, usage) -> str:
    """The help text: the command's docstring, its own flags, then the shared ones."""
    own = flags.FLAGS.flags_by_module_dict()
    lines = [(module.__doc__ or "").strip(), "", f"usage: {usage} [flags]", ""]
    for owner in (module.__name__, *(name for name in own if name.startswith("linseed.scripts.cli."))):
        for flag in own.get(owner, ()):
            if owner == config_flag.__name__ and flag.name in ("config", "print_config") and "--config" not in usage:
                continue
            shown = "" if flag.default in (None, "", []) else f" (default: {flag.default})"
            what = re.sub(r";\s*repeat this option.*", "", flag.help)  # absl adds it to flags of many values
            text = f"--{flag.name}  {what}{shown}"
            lines.append(textwrap.fill(text, 100, subsequent_indent=" " * 6))
    return "\n".join(lines)


def tell(line: str):
    """Prints a line to stderr; does not fail if nobody reads it."""
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


def _usage(needs, argument):
    return " ".join([program(), *filter(None, [argument]), *(f"--{need}={need.upper()}" for need in needs)])


def program() -> str:
    """How this command was called: `linseed train`, or `python -m scripts.train` in a clone."""
    spec = sys.modules["__main__"].__spec__
    name = spec.name if spec else ""
    name = name.removesuffix(".__main__")
    return f"python -m {name}" if name.startswith(("scripts.", "linseed.scripts.")) else " ".join(sys.argv[:1])


def _one_line(error):
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" ({error.filename})" if error.filename else ""
        return (
            f"the disk is full{place}; free some space and run the same command again, earlier checkpoints are intact"
        )
    return str(error)


def _show_our_warnings_alone():
    """Shows our warnings only. Those of libraries need --debug: a failed save would fill the screen with them."""
    if DEBUG.value:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.getLogger("linseed").addHandler(handler)
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    sys.unraisablehook = _skip_closed_loops


class _OneLine(logging.Formatter):
    """A warning as one printable line."""

    def format(self, record):
        return printable(" ".join(f"warning: {record.getMessage()}".split()))


def _skip_closed_loops(unraisable):
    """Hides errors of Orbax futures that report to a closed event loop after a failed save or restore."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _fail(line, error=None, *, status=LinseedError.status):
    if error is not None and flags.FLAGS.is_parsed() and DEBUG.value:
        raise error
    print("error: " + printable(" ".join(line.split())), file=sys.stderr)
    sys.exit(status)
