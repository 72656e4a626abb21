"""Signs in the clean pass: a run's checkpoints on train and validation images as they are, in evaluation mode.

Each function looks for one cause in a run that left chance, and yields nothing if it does not find it.
"""

import math
from collections.abc import Iterator

from linseed.trainer.tuning.diagnosis.curve import POINTS, SIGMAS, Accuracy, CleanPass, Curve
from linseed.trainer.tuning.diagnosis.findings import Finding
from linseed.trainer.tuning.diagnosis.signs_in_train import SAME

EVALUATED_WORSE = 0.2  # in accuracy; in a sound run the clean pass is better than training, which is behind it


def eval_mode(curve: Curve) -> Iterator[Finding]:
    """Train images are recognised in training and not in evaluation mode."""
    if not curve.clean:
        return
    trained, evaluated = curve.train(curve.part(2 / 3, 1.0)), curve.clean.latest_train
    if is_worse(evaluated, trained, by=EVALUATED_WORSE):
        evidence = f"accuracy {trained.right:.1%} on train at the end, and {evaluated.right:.1%} on the same images "
        evidence += "without augmentation and in evaluation mode"
        yield evaluated_otherwise(evidence)
        if curve.config["data"]["augment"]:
            yield Finding(
                "augmentation", SAME, "--config.data.augment= with operations that leave some images as they are"
            )


def evaluated_otherwise(evidence: str) -> Finding:
    """The finding for a network that does worse in evaluation mode."""
    remedy = "check what the model does with train=False: BatchNorm statistics, dropout; and ema_decay, eval.views"
    return Finding("eval_mode", evidence, remedy)


def wrong_labels(curve: Curve) -> Iterator[Finding]:
    """The best checkpoint knows validation better than train."""
    if curve.clean:
        yield from labels_that_do_not_fit(curve.clean)


def labels_that_do_not_fit(clean: CleanPass) -> Iterator[Finding]:
    """The best checkpoint knows validation better than train: part of the train labels do not fit what it learned.

    Train images that it was not trained on tell more than the others, whose labels it may have memorised.
    """
    train, val = clean.best_unseen or clean.best_train, clean.best_val
    if is_worse(train, val, by=POINTS * val.right):  # a wrong label counts only where the network is right
        which = "train images that were left out" if clean.best_unseen else "train without augmentation"
        evidence = f"accuracy {val.right:.1%} on validation and {train.right:.1%} on {which}: about "
        evidence += f"{1 - train.right / val.right:.0%} of the train labels do not fit what the network learned"
        yield Finding("wrong_labels", evidence, "look at train images that the best checkpoint takes for another class")
        yield Finding("val_distribution", f"{SAME}: validation may be easier", "compare images of both splits")


def is_worse(accuracy: Accuracy, other: Accuracy, *, by: float) -> bool:
    """Whether `accuracy` is below `other` by more than `by` and the noise of both."""
    return other.right - accuracy.right > by + SIGMAS * math.hypot(accuracy.error, other.error)
