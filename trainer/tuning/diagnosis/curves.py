"""The curve doctor, step 6 of the lecture's seven: finds problems in a run's curves and suggests remedies.

`diagnose(records, num_classes=..., config=...)` -> findings, the likelier cause first; a sound run gets none.
`curve.py` measures, `signs_*.py` interpret: one function for each cause, with its reason.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from linseed.trainer.tuning.diagnosis import signs_in_clean_pass as clean_pass
from linseed.trainer.tuning.diagnosis import signs_in_train as train
from linseed.trainer.tuning.diagnosis import signs_in_validation as validation
from linseed.trainer.tuning.diagnosis import signs_of_failure as failure
from linseed.trainer.tuning.diagnosis.curve import CleanPass, read
from linseed.trainer.tuning.diagnosis.findings import Finding

# The signs compare medians of at least three log windows; fewer tell nothing. The lecture judges a rate after about a
# hundred iterations.
FEWEST_RECORDS = 6
FEWEST_STEPS = 100

# For a run that left chance: sign -> the signs that its cause explains, which are then skipped.
SIGNS = {
    clean_pass.eval_mode: (
        clean_pass.wrong_labels,
        validation.shuffled_labels,
        validation.val_distribution,
        validation.underfit,
        validation.overfit,
    ),
    train.double_softmax: (train.plateau, validation.underfit, train.lr_too_low, validation.overfit),
    validation.shuffled_labels: (
        validation.val_distribution,
        validation.overfit,
        train.bad_init,
        train.plateau,
        validation.underfit,
    ),
    clean_pass.wrong_labels: (train.plateau, validation.underfit, validation.overfit),
    validation.val_distribution: (validation.overfit,),
    train.lr_too_high: (train.bad_init, train.plateau, validation.underfit, train.spike),
    train.decayed_too_early: (train.lr_too_low, train.decay_too_high, train.plateau, validation.underfit),
    train.lr_too_low: (train.bad_init, train.plateau, validation.underfit),
    train.decay_too_high: (train.plateau, validation.underfit),
    train.bad_init: (train.spike,),
    train.plateau: (),
    validation.underfit: (),
    validation.overfit: (),
    train.spike: (),
}


def diagnose(
    records: Sequence[Mapping[str, Any]],
    *,
    num_classes: int,
    config: Mapping[str, Any],
    stopped: str = "",
    clean: CleanPass | None = None,
) -> list[Finding]:
    """The problems that a run's curve shows, the likelier cause first; [] if it is sound, or too short to tell.

    If the curve cannot tell a cause from the one before it, the evidence is `signs_in_train.SAME`: either may be true.
    records: of the run's `metrics.jsonl`, from `read_records`. config: the run's. stopped: the message of the
    NonFiniteError that ended the run, or "". clean: of its checkpoints, None if they were not evaluated. Chance assumes
    about equally frequent classes. If one class is far more frequent, a network that only guesses it seems to learn,
    and gets no finding.
    """
    keys = ("train_loss", "grad_norm", "val_loss")
    whole = all(math.isfinite(record[key]) for record in records for key in keys if key in record)
    curve = read(records, num_classes=num_classes, config=config, clean=clean)
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
