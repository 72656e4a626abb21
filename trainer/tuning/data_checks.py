"""Step 1 of the seven, before the network: do the train and validation images fit each other and their labels?"""

import numpy as np

from linseed.trainer.data import duplicates
from linseed.trainer.data.splits import Split
from linseed.trainer.tuning.diagnosis.findings import Finding

REPEATED = 0.05  # of the images; benchmark data hold fewer than one in a hundred repeated ones
SURELY = 10.0  # expected images of a class that validation lacks: by chance one in e^10
SAMPLE = 1000  # images of each split that are compared
FAR = 1.0  # between the means of the splits, in standard deviations between the images of train
VISIBLE = 0.05  # of the range of pixel values


def splits(train: Split, val: Split, *, leaked: float) -> list[Finding]:
    """The first problem that the images and labels of the two splits show, or [].

    leaked: the share of validation that is also in train, see `duplicates.share_in_train`.
    """
    return _two_labels(train) or _leak(leaked) or _classes(train, val) or _pixels(train, val)


def _two_labels(train):
    share = duplicates.share_with_two_labels(train)
    if share <= REPEATED:
        return []
    said = f"{share:.0%} of the train images equal another one, pixel for pixel, of another class"
    remedy = "look at these images: blank ones come from a reader that failed, others from wrong labels"
    return [Finding("conflicting_labels", said, remedy)]


def _leak(share):
    if share <= REPEATED:
        return []
    said = f"{share:.0%} of the validation images are also in train, pixel for pixel: validation measures memory"
    return [Finding("leaked_validation", said, "remove repeated images, or make validation of other images")]


def _classes(train, val):
    """Classes that validation lacks, though many of its images should be of them."""
    classes = int(train.labels.max()) + 1
    expected = np.bincount(train.labels, minlength=classes) / len(train.labels) * len(val.labels)
    missing = np.flatnonzero((np.bincount(val.labels, minlength=classes)[:classes] == 0) & (expected > SURELY))
    if not len(missing):
        return []
    said = f"validation has no image of {len(missing)} of {classes} classes, such as class {missing[0]}: "
    said += f"with the shares of train it would have {expected[missing[0]]:.0f}"
    return [Finding("val_distribution", said, "shuffle the data set before it is split")]


def _pixels(train, val):
    """A brightness or contrast that differs between the splits by more than it does between images of train."""
    own, others = _measures(train), _measures(val)
    names = [*(f"channel {channel}" for channel in range(own.shape[1] - 1)), "the contrast"]
    far = np.abs(others.mean(axis=0) - own.mean(axis=0))
    doubt = 3 * np.sqrt(1 / len(own) + 1 / len(others))
    differs = (far > (FAR + doubt) * own.std(axis=0)) & (far > VISIBLE)
    if not differs.any():
        return []
    worst = int(np.argmax(np.where(differs, far, 0.0)))
    said = f"the mean of {names[worst]} is {own[:, worst].mean():.3f} in train and {others[:, worst].mean():.3f} in "
    said += f"validation, on a scale of 0 to 1; images of train deviate from theirs by {own[:, worst].std():.3f}"
    return [Finding("val_distribution", said, "compare images of both splits, and how they were read")]


def _measures(split):
    """float [N, C + 1] on the 0..1 scale: the mean of each channel of an image, and the deviation of its pixels."""
    some = np.sort(np.random.default_rng(0).permutation(len(split.labels))[:SAMPLE])
    images = np.asarray(split.images[some], np.float32) / 255
    return np.column_stack([images.mean(axis=(1, 2)), images.std(axis=(1, 2, 3))])
