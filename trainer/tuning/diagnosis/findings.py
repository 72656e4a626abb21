"""The problems that a run can have, by name, for the checks and the curve doctor."""

from typing import NamedTuple

CAUSES = {
    "augmentation": "the augmentation destroys the class",
    "bad_init": "the initial weights have the wrong scale",
    "clip_too_low": "the gradient is clipped to almost nothing",
    "conflicting_labels": "identical train images have different labels",
    "dead_units": "units that no image of the batch activates: their weights get no gradient",
    "decay_too_high": "the weight decay is too high",
    "decayed_too_early": "the learning rate fell too early",
    "double_softmax": "the network ends in a softmax or sigmoid, and the loss applies another",
    "eval_mode": "the network that is evaluated is not the one that is trained",
    "input_scale": "the pixels are not normalised",
    "leaked_validation": "validation images are also in train",
    "lr_too_high": "the learning rate is too high",
    "lr_too_low": "the learning rate is too low",
    "non_finite": "the loss, the gradient or the update became NaN or infinite",
    "overfit": "overfitting: train improves while validation does not",
    "plateau": "the loss stands still and the learning rate does not fall",
    "shuffled_labels": "the labels do not belong to the images",
    "spike": "the loss jumped up and came back",
    "too_small": "the network is too small for the data",
    "underfit": "underfitting: train is no better than validation, and both are low",
    "val_distribution": "the validation data differ from the train data",
    "wrong_labels": "part of the train labels are wrong",
    "zero_weights": "the weights start at zero, and all units stay equal",
}


class Finding(NamedTuple):
    """One problem. cause: a key of CAUSES.

    evidence: a sentence with the numbers. remedy: what to do next, as flags of scripts.train if there are any.
    """

    cause: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{CAUSES[self.cause]}: {self.evidence}. Next: {self.remedy}"
