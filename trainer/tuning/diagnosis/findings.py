"""What can be wrong with a run, by name: the words that the checks and the curve doctor share."""

from typing import NamedTuple

CAUSES = {
    "augmentation": "the augmentation destroys the class",
    "bad_init": "the initial weights have the wrong scale",
    "dead_units": "units that no image of the batch activates: their weights get no gradient",
    "decay_too_high": "weight decay outweighs the data",
    "decayed_too_early": "the rate fell before learning was done",
    "double_softmax": "the network's last layer is a softmax, and the loss applies another",
    "input_scale": "the pixels reach the network unnormalised",
    "lr_too_high": "the learning rate is too high",
    "lr_too_low": "the learning rate is too low",
    "non_finite": "the loss, the gradient or the update became NaN or infinite",
    "overfit": "train goes on to improve while validation does not",
    "plateau": "the loss stands still and the rate does not fall",
    "shuffled_labels": "the labels do not belong to the images",
    "spike": "the loss jumped up and came back",
    "too_small": "the network is too small for the data",
    "underfit": "train is no better than validation, and both could be better",
    "val_distribution": "validation does not look like train",
    "zero_weights": "weights that start at zero keep all units alike",
}


class Finding(NamedTuple):
    """One thing that is wrong. cause: a key of CAUSES.

    evidence: a sentence with the numbers that made it say so. remedy: what to do next, flags of scripts.train where
    there are any.
    """

    cause: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{CAUSES[self.cause]}: {self.evidence}. Next: {self.remedy}"
