"""Where the images of a run wait."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from linseed.trainer.data import placement
from linseed.trainer.data.splits import Split

LIMIT = 400_000  # of a device; a quarter of it is for images


def split(bytes_of_images):
    return Split(np.zeros((bytes_of_images, 1, 1, 1), np.uint8), np.zeros(bytes_of_images, np.int32))


@pytest.mark.parametrize("of_its_own", [True, False])
@pytest.mark.parametrize(
    "train, val, fits",
    [(100_000, 0, True), (100_001, 0, False), (80_000, 80_000, True), (80_000, 80_004, False), (0, 400_000, True)],
)
def test_validation_takes_room_beside_train_on_each_of_four_devices(monkeypatch, of_its_own, train, val, fits):
    """All of train, and a quarter of validation."""
    stats = {"bytes_limit": LIMIT} if of_its_own else None
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: stats)] * 4)
    monkeypatch.setattr(placement, "memory_bytes", lambda: 4 * LIMIT)
    assert placement.fits_device(split(train), split(val)) is fits
    settings = dict(placement="auto", seed=0, batch_size=8, multiple=4)
    if train:
        assert bool(placement.make_feed(split(train), val=split(val), **settings).resident) is fits
