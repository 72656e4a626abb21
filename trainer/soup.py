"""A greedy soup: the mean of the weights of several runs that began from the same weights, as far as it helps.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", recipe 1.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from linseed.trainer import evaluation
from linseed.trainer.errors import ConfigError, DataError
from linseed.trainer.experiment import Experiment
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.step.scores import score


class Soup(NamedTuple):
    """weights: {"params", "model_state"}, host arrays. kept: the runs in it, the best first. figures: on validation."""

    weights: dict[str, Any]
    kept: tuple[Path, ...]
    figures: dict[str, Any]
    experiment: Experiment
    config: Any


def greedy(workdirs: Sequence[Path], *, which: str, say: Callable[[str], None]) -> Soup:
    """The soup of the runs in `workdirs`; of one run its own weights.

    The runs, the best on validation first, by their own `eval.monitor`, are added one after another, each only if the
    mean with it is at least as good on validation as without. which: as for `evaluation.evaluate_checkpoint`. say:
    shows the user a line. Raises ConfigError for other networks, DataError for other data.
    """
    with contextlib.ExitStack() as locks:
        for workdir in workdirs:
            locks.enter_context(workdir_lib.lock(workdir))
        runs = []
        for workdir in workdirs:
            config = evaluation.read_run(workdir)
            experiment, [(_, weights)] = evaluation.restore_weights(config, workdir, which=which)
            runs.append((workdir, config, experiment, weights))
        _, config, first, _ = runs[0]
        _check_alike(runs)

        def judged(weights):
            return first.evaluate(first.parallel.replicate(weights), first.val)

        found = [(judged(weights), workdir, weights) for workdir, _, _, weights in runs]
        found.sort(key=lambda each: score(each[0], first.monitor), reverse=True)
        figures, best, weights = found[0]
        kept = [(best, weights)]
        say(f"{best}: val {figures['accuracy']:.2%}")
        for alone, workdir, more in found[1:]:
            mean = _mean([*(each for _, each in kept), more])
            together = judged(mean)
            better = score(together, first.monitor) >= score(figures, first.monitor)
            say(
                f"{workdir}: val {alone['accuracy']:.2%} alone, {together['accuracy']:.2%} in the soup: "
                + ("added" if better else "left out")
            )
            if better:
                kept.append((workdir, more))
                weights, figures = mean, together
    return Soup(weights, tuple(workdir for workdir, _ in kept), figures, first, config)


def _mean(all_weights):
    return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64).astype(leaves[0].dtype), *all_weights)


def _check_alike(runs):
    (first_dir, config, first, weights), *others = runs
    for workdir, other, experiment, more in others:
        if other.model != config.model or jax.tree.map(np.shape, more) != jax.tree.map(np.shape, weights):
            raise ConfigError(f"{workdir} is another network than {first_dir}; their weights have no mean")
        if not all(np.array_equal(first.statistics[key], values) for key, values in experiment.statistics.items()):
            raise ConfigError(f"{workdir} normalises images otherwise than {first_dir}; leave one of them out")
        if experiment.fingerprint != first.fingerprint:
            raise DataError(f"{workdir} was trained and judged on other splits than {first_dir}; leave one of them out")
