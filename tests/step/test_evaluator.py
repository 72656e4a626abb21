"""Evaluation is exact: the same for every batch size and number of devices."""

import jax
import numpy as np
import pytest

from linseed.trainer.data.splits import Split
from linseed.trainer.runtime.data_parallel import DataParallel
from linseed.trainer.step import scores
from linseed.trainer.step.evaluator import Evaluator


def eval_step(weights, batch):
    # The score of class 1 is the mean pixel, that of class 0 the threshold.
    score = batch["image"].astype(np.float32).mean(axis=(1, 2, 3))
    logits = jax.numpy.stack([jax.numpy.full_like(score, 0) + weights, score], axis=1)
    sums = scores.class_sums(losses=score, logits=logits, labels=batch["label"], mask=batch["mask"])
    return jax.lax.psum(sums, "batch"), {"score": jax.lax.all_gather(score, "batch", tiled=True)}


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("batch_size", [4, 12, 64])
@pytest.mark.parametrize("count", [1, 13, 48])
def test_every_example_counts_once(devices, batch_size, count):
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (count, 2, 2, 1), dtype=np.uint8), rng.integers(0, 2, count, dtype=np.int32))
    parallel = DataParallel("pmap", devices=jax.devices()[:devices])
    compiled = parallel.compile(eval_step, donate=False)
    weights = parallel.replicate(np.float32(128))
    evaluate = Evaluator(compiled, batch_size=batch_size, parallel=parallel, resident=split)
    found = evaluate(weights, split)
    assert evaluate(weights, Split(split.images.copy(), split.labels)) == evaluate(weights, split) == found
    score = split.images.mean(axis=(1, 2, 3))
    assert found["examples"] == count
    assert found["accuracy"] == pytest.approx(np.mean((score > 128) == split.labels))
    assert found["loss"] == pytest.approx(score.mean(), rel=1e-6)
    one_by_one = np.concatenate([examples["score"] for _, examples in evaluate.one_by_one(weights, split)])
    np.testing.assert_allclose(one_by_one[:count], score, rtol=1e-6)
