"""Images that are there twice are counted, pixel for pixel."""

import numpy as np
import pytest

from linseed.trainer.data import duplicates
from linseed.trainer.data.splits import Split


def split(*images):
    """8x8 images of one value each, of the classes 0, 1, 0, 1, ..."""
    values = np.array(images, np.uint8)[:, None, None, None]
    return Split(np.broadcast_to(values, (len(images), 8, 8, 1)), np.arange(len(images), dtype=np.int32) % 2)


@pytest.mark.parametrize(("val", "share"), [((9, 8, 7), 0.0), ((1, 8, 7, 2), 0.5), ((1, 1, 1, 1), 1.0)])
def test_the_share_of_validation_in_train(val, share):
    assert duplicates.share_in_train(split(1, 2, 3), split(*val)) == share


def test_one_pixel_makes_another_image():
    train, val = split(1, 2), Split(split(1).images.copy(), split(1).labels)
    val.images[0, 3, 4, 0] = 0
    assert duplicates.share_in_train(train, val) == 0.0


@pytest.mark.parametrize(("images", "share"), [((1, 2, 3), 0.0), ((1, 2, 1), 0.0), ((1, 1, 1, 4), 0.75)])
def test_equal_images_of_two_classes_contradict_each_other(images, share):
    """Of equal images the classes count, not how many there are."""
    assert duplicates.share_with_two_labels(split(*images)) == share
