"""The curve doctor: step 6 of the lecture's seven, what a run's curves show and what to do about it.

`diagnose(records, num_classes=..., config=...)` -> findings, the likelier cause first; a sound run gets none.
`curve.py` has what is measured, `signs_*.py` what it means: one function for each cause, with its reason.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from linseed.trainer.tuning.diagnosis import signs_in_train as train
from linseed.trainer.tuning.diagnosis import signs_in_validation as validation
from linseed.trainer.tuning.diagnosis import signs_of_failure as failure
from linseed.trainer.tuning.diagnosis.curve import read
from linseed.trainer.tuning.diagnosis.findings import Finding

# What is compared are medians of at least three windows of the log: fewer say nothing. The lecture gives a rate about
# a hundred iterations to show what it does.
FEWEST_RECORDS = 6
FEWEST_STEPS = 100

# Of a run that left chance. A sign -> the signs that its cause explains, and that are then not asked.
SIGNS = {
    train.double_softmax: (train.plateau, validation.underfit, train.lr_too_low, validation.overfit),
    validation.shuffled_labels: (
        validation.val_distribution,
        validation.overfit,
        train.bad_init,
        train.plateau,
        validation.underfit,
    ),
    validation.val_distribution: (validation.overfit,),
    train.lr_too_high: (train.bad_init, train.plateau, validation.underfit, train.spike),
    train.decayed_too_early: (train.lr_too_low, train.plateau, validation.underfit),
    train.lr_too_low: (train.bad_init, train.plateau, validation.underfit),
    train.decay_too_high: (train.plateau, validation.underfit),
    train.bad_init: (train.spike,),
    train.plateau: (),
    validation.underfit: (),
    validation.overfit: (),
    train.spike: (),
}


def diagnose(
    records: Sequence[Mapping[str, Any]], *, num_classes: int, config: Mapping[str, Any], stopped: str = ""
) -> list[Finding]:
    """What the curve of a run shows to be wrong, the likelier cause first; [] for a sound run or one too short to tell.

    A cause that the curve cannot tell from the one before it says so (`signs_in_train.SAME`): one of the two is enough.
    records: those of its `metrics.jsonl`, see `read_records`. config: that of the run. stopped: the message of
    the NonFiniteError that ended it, if one did. Chance means classes about equally frequent: where one is far more
    so, a network that only guesses it is taken for one that learns, and gets no finding.
    """
    keys = ("train_loss", "grad_norm", "val_loss")
    whole = all(math.isfinite(record[key]) for record in records for key in keys if key in record)
    curve = read(records, num_classes=num_classes, config=config)
    if stopped or not whole:
        return list(failure.non_finite(curve, config=config, stopped=stopped))
    if curve is None or len(curve.step) < FEWEST_RECORDS or curve.step[-1] < FEWEST_STEPS:
        return []
    if failure.stays_at_chance(curve):
        return list(failure.at_chance(curve))
    findings, explained = [], set()
    for sign, explains in SIGNS.items():
        if sign not in explained and (said := list(sign(curve))):
            findings += said
            explained.update(explains)
    return findings
