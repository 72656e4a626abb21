"""`--config=PAGE`, `--config.KEY=VALUE` and `--print_config`: the config of a command."""

from pathlib import Path

from absl import flags

from linseed.trainer.errors import ConfigError

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "What to run: a page by name (digits), or a file (configs/digits.py); words after a colon pick a "
    "variant (digits:quick). --config.KEY=VALUE sets any key: --config.optimizer.name=adamw --config.horizon.epochs=5.",
)
PRINT = flags.DEFINE_bool("print_config", False, "Print every key and value of the config, and exit.")

_texts: dict[str, str] = {}  # key -> the value as it was written


def take(argv: list[str]) -> list[str]:
    """`argv` without `--config.KEY=VALUE` and `--config.KEY VALUE`, which are kept for `load`."""
    rest, pending = [], None
    _texts.clear()
    for argument in argv:
        if pending:
            _texts[pending], pending = argument, None
            continue
        key, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not key.startswith("config.") or "--" in rest:
            rest.append(argument)
        elif equals:
            _texts[key.removeprefix("config.")] = value
        else:
            pending = key.removeprefix("config.")
    if pending:
        raise ConfigError(f"--config.{pending} has no value; write --config.{pending}=VALUE")
    return rest


def load():
    """The config that the flags name, complete and validated. Raises ConfigError, one line."""
    from linseed.trainer.config import changes
    from linseed.trainer.config.pages import read_page
    from linseed.trainer.config.resolve import resolve
    from linseed.trainer.weights.complete import complete

    config = read_page(CONFIG.value)
    return resolve(complete(config, changes.read(config, _texts)))


def page_name() -> str:
    """The page's name: the stem of its file."""
    return Path(CONFIG.value.partition(":")[0]).stem
