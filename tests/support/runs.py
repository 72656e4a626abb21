"""Runs of a few steps, and ways to end them early."""

import signal
from pathlib import Path

import ml_collections

from linseed.configs import digits
from linseed.trainer import train
from linseed.trainer.config.resolve import resolve
from linseed.trainer.experiment import Shared
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import read_records

ROOT = Path(__file__).parents[2]
SHARED = Shared()
sharing = False  # whether `run` shares data and programs with other tests' runs: not where a test patches them


def tiny(**changes) -> ml_collections.ConfigDict:
    """A run of 24 steps with 6 evaluations, on everything that has state: dropout, augmentation, norm, EMA."""
    config = resolve(digits.get_config())
    with config.unlocked():
        config.data.source = dict(name="synthetic", num_examples=160, num_classes=4, image_size=8, channels=3, seed=0)
    flat = {
        "data.augment": "pad_crop(1)|flip_lr(0.5)|color_jitter(0.2, 0.2, 0.2)",
        "data.batch_size": 32,
        "data.val_fraction": 0.2,
        "model.widths": (4, 8),
        "optimizer.lr": 0.02,
        "ema_decay": 0.9,
        "horizon.epochs": 6.0,
        "schedule.warmup_epochs": 1.0,
        "eval.batch_size": 64,
        "log_every_steps": 3,
    }
    config.update_from_flattened_dict({**flat, **changes})
    return config


class Stop(Exception):
    """A kill, as far as the loop can tell."""


class Killer(Quiet):
    """Ends the run when it hands out step `step`, with what was saved `train.AHEAD` steps before."""

    def __init__(self, step):
        self.step = step
        self.said = []

    def say(self, text):
        self.said.append(text)

    def advance(self, step):
        if step == self.step:
            raise Stop


def run(config, workdir, *, writer=None, on_config_change="refuse", shared=None, **options):
    shared = shared or (SHARED if sharing else Shared())
    return train.train_and_evaluate(
        config, workdir, writer=writer or Quiet(), on_config_change=on_config_change, shared=shared, **options
    )


def records(workdir):
    """The metrics, without what a clock measured."""
    found = read_records(workdir / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in found]


class Trip:
    """Asks to stop from the `poll`-th question on."""

    def __init__(self, poll):
        self.left = poll

    def __call__(self):
        self.left -= 1
        return signal.SIGTERM if self.left <= 0 else 0
