"""The largest batch that fits is found in a few questions, divides evenly, and the next larger one does not fit."""

from types import SimpleNamespace

import jax
import pytest
from support.mlp import PIXELS, TRAIN, mlp

from linseed.trainer.cost.batch_size import COMPILES, find_room, largest_fitting
from linseed.trainer.experiment import Shared, build


@pytest.mark.parametrize("start", [1, 7, 64, 1000])
@pytest.mark.parametrize("limit", [1_010, 1_999, 54_321, 10**9])
def test_on_a_straight_line_the_answer_is_exact(start, limit):
    known = largest_fitting(lambda n: 1000 + 10 * n, start=start, most=4000, limit=limit)
    fits = max(n for n, size in known.items() if size <= limit)
    assert fits == min(4000, (limit - 1000) // 10) and len(known) <= COMPILES


def test_steps_in_the_line_end_within_a_part_of_it():
    known = largest_fitting(lambda n: 1000 + n // 64 * 640 + 5 * n, start=10, most=10**5, limit=10**6)
    best = max(n for n in range(10**5) if 1000 + n // 64 * 640 + 5 * n <= 10**6)
    fits = max(n for n, size in known.items() if size <= 10**6)
    assert 0.98 * best <= fits <= best and len(known) <= COMPILES


def test_nothing_fits_and_nothing_is_known():
    assert min(largest_fitting(lambda n: 100 + n, start=8, most=64, limit=50)) == 1
    assert largest_fitting(lambda n: None, start=8, most=64, limit=50) is None


@pytest.mark.parametrize("placement", ["host", "device"])
def test_the_batch_of_a_run_fits_and_one_more_does_not(tmp_path, placement):
    config = mlp(accumulation_parts=2, steps_per_call=3, **{"data.placement": placement, "eval.batch_size": 48})
    experiment = build(config, tmp_path, shared=Shared())
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(experiment.state))
    sizes = {}

    def beside(batch):
        """A copied state and 5 calls of 3 batches, one of them the step's own; with the images on the devices those
        of train, a quarter of the 96 rows that validation is padded to, and batches of places alone."""
        images = PIXELS + 4  # and a label
        if placement == "host":
            return state + 14 * batch // 4 * (images + 4 + 4 + 4)  # mask, index and epoch
        return state + TRAIN * images + 96 // 4 * (images + 4) + 14 * batch // 4 * (4 + 4 + 4)

    class Step:
        def lower(self, state, batch):
            lowered = experiment.train_step.lower(state, batch)

            def compile():
                compiled = lowered.compile()
                found = compiled.memory_analysis()
                sizes[batch["mask"].size] = (
                    found.argument_size_in_bytes
                    + found.temp_size_in_bytes
                    + found.output_size_in_bytes
                    - found.alias_size_in_bytes
                    + beside(batch["mask"].size)
                )
                return compiled

            return SimpleNamespace(compile=compile)

    watched = experiment._replace(train_step=Step())
    whole = find_room(watched, config, limit=10**12)
    assert whole.all_of_train and whole.batch == 256 == 4 * whole.per_device
    limit = (sizes[64] + sizes[256]) // 2
    room = find_room(watched, config, limit=limit)
    unit = 4 * config.accumulation_parts
    assert 64 < room.batch < 256 and room.batch % unit == 0 and room.per_device == room.batch // 4
    assert room.bytes == sizes[room.batch] <= limit < sizes[room.batch + unit]
    none = find_room(watched, config, limit=sizes[64] // 100)
    assert (none.per_device, none.batch) == (0, 0) and none.bytes > none.limit


def test_a_batch_that_the_device_cannot_even_be_given_does_not_fit(tmp_path, monkeypatch):
    config = mlp()
    experiment = build(config, tmp_path, shared=Shared())
    shard = experiment.parallel.shard

    def full(batch):
        if len(batch["mask"]) > 32:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")
        return shard(batch)

    monkeypatch.setattr(experiment.parallel, "shard", full)
    assert find_room(experiment, config, limit=10**12).batch == 32
