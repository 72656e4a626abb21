"""What is measured of a step: every call is timed but the first, and a count that there is not is not made up.

What `measure` finds of a whole experiment is held against formulas in test_forecast.py.
"""

import numpy as np
import pytest
from absl import flags
from PIL import Image
from support.mlp import mlp

from linseed.trainer.cost import measure as measure_lib
from linseed.trainer.cost.measure import count_flops, time_steps
from linseed.trainer.experiment import Shared, build


def test_a_backend_that_counts_nothing_leaves_nothing_but_the_figure_out():
    class Lowered:
        def cost_analysis(self):
            raise NotImplementedError

        def as_text(self):
            return 'stablehlo.custom_call @Sharding(%0)\nstablehlo.custom_call @"__onednn$convolution"(%1)'

    flops = count_flops(Lowered(), devices=1, optimizer="adamw", accumulation_parts=1)
    assert flops.step is None
    assert flops.missing == ("the work of other libraries (__onednn$convolution)",)


def test_timing_stops_at_its_limit_but_measures_once():
    calls = []

    def step(state, batch):
        calls.append(batch)
        return state + 1, {}

    seconds, state = time_steps(step, 0, batch_at=lambda index: index, steps=50, time_limit=0.0)
    assert len(seconds) == 1 and state == 2 and calls == [0, 1]
    seconds, state = time_steps(step, 0, batch_at=lambda index: index, steps=5, time_limit=60.0)
    assert len(seconds) == 5 and state == 6


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """`watched(config)`: of an experiment measured for 3 steps and so many seconds, all that came of it."""

    def run(config, *, time_limit):
        experiment, opened, made = build(config, tmp_path, shared=Shared()), [], []

        def batches(step):
            opened.append(step)
            return experiment.feed.batches(step)

        def timed(step, carry, **settings):
            before = int(carry["state"].step)
            seconds, carry = time_steps(step, carry, **settings)
            made.append(int(carry["state"].step) - before)
            return seconds, carry

        monkeypatch.setattr(measure_lib, "time_steps", timed)
        _, memory, seconds = measure_lib.measure(
            experiment._replace(feed=experiment.feed._replace(batches=batches)),
            config,
            timed_steps=3,
            time_limit=time_limit,
        )
        return experiment, memory, seconds, opened, made

    return run


def test_images_that_stay_in_their_files_are_measured_by_workers_that_start_once(tmp_path, watched):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    config = mlp(**{"data.batch_size": 8, "data.val_fraction": 0.25, "eval.batch_size": 8})
    with config.unlocked():
        config.data.source = dict(
            name="folder_stream",
            root=str(tmp_path / "images"),
            image_size=8,
            resize=8,
            train_crop="centre",
            test_fraction=0.2,
            split_seed=0,
            on_bad_image="error",
            workers=1,
        )
    flags.FLAGS.mark_as_parsed()
    try:
        experiment, memory, seconds, opened, _ = watched(config, time_limit=60.0)
    finally:
        flags.FLAGS.unparse_flags()
    assert opened == [0]
    assert memory.data == 4 * (len(experiment.train.labels) + len(experiment.val.labels))
    assert seconds.timed == 3 and seconds.step > 0 and seconds.evaluation > 0


@pytest.mark.parametrize("time_limit, timed, most", [(60.0, 3, 2 + 6), (0.0, 1, 2 + 2)])
def test_no_more_steps_are_made_than_asked_for_where_a_call_has_many(watched, time_limit, timed, most):
    _, _, seconds, _, made = watched(mlp(steps_per_call=50, log_every_steps=50), time_limit=time_limit)
    assert seconds.timed == timed and sum(made) == most
