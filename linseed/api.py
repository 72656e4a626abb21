"""What `import linseed` offers: train, evaluate, predict, and the configs for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ml_collections

from linseed.trainer.runtime import xla_flags

if TYPE_CHECKING:
    from linseed.trainer.portable.classifier import Classifier

xla_flags.use()  # before JAX starts


def load_config(page: str, changes: Mapping[str, Any] | None = None) -> ml_collections.ConfigDict:
    """The whole config of a page, with `changes` by dotted key, checked.

    page: a name ("digits"), or a file ("my_config.py"), perhaps with a variant ("digits:quick"). changes: for example
    {"optimizer.name": "adamw", "model.widths": (32, 64)}; another name brings the defaults of its entry. Raises
    ConfigError, one line that names the cure.
    """
    from linseed.trainer.config.pages import read_page
    from linseed.trainer.weights.complete import complete

    return validate(complete(read_page(page), changes or {}))


def validate(config: Mapping[str, Any] | ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`config` with every key that it leaves out, locked. Raises ConfigError where it cannot run."""
    from linseed.trainer.config.resolve import resolve

    return resolve(config)


def load_plugin(plugin: str) -> str:
    """Makes the models, optimisers, ops ... of a module or file available to configs; returns the plugin's name.

    plugin: "package.module", or the path of a file that ends in .py. Raises ConfigError where that fails.
    """
    from linseed.trainer.config import plugins

    return plugins.load(plugin)


def train(
    config: Mapping[str, Any] | ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    on_config_change: Literal["refuse", "accept"] = "refuse",
    open_test: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains `config` into the folder `workdir`, on from where its run was stopped; returns what `result.json` holds.

    on_config_change: what to do where the folder holds a run of another config. open_test: whether the test split is
    opened once at the end; without, `result["test"]` is None. quiet: shows nothing. Raises a LinseedError, one line,
    for what a user can mend.
    """
    from rich.console import Console

    from linseed.trainer.run import console
    from linseed.trainer.train import train_and_evaluate

    return train_and_evaluate(
        validate(config),
        Path(workdir).expanduser(),
        writer=console.Quiet() if quiet else console.for_console(Console()),
        on_config_change=on_config_change,
        judge=("val", "test") if open_test else ("val",),
    )


def evaluate(
    workdir: str | Path,
    *,
    which: Literal["best", "latest", "ema"] = "best",
    split: Literal["val", "test"] = "val",
) -> dict[str, Any]:
    """The scores of a run's checkpoint on a split, as in `result.json`; opening test is written down."""
    from linseed.trainer.evaluation import evaluate_checkpoint

    return evaluate_checkpoint(Path(workdir).expanduser(), which=which, split=split)


def load(path: str | Path) -> "Classifier":
    """The classifier in a model file, `RUN/model.linseed` or one of `linseed export`; it needs neither run nor data.

        classifier = linseed.load("model.linseed")
        found = classifier.predict("photos")  # or images of Pillow's, uint8 arrays, a list of paths
        print(found.names[0], found.labels[0], found.top(3)[0])

    Raises a LinseedError, one line, for a file that is damaged, or whose network is that of a plugin which is not
    loaded.
    """
    from linseed.trainer.portable.classifier import load

    return load(path)
