"""Which of several trials wins."""

import math

from optuna.trial import TrialState

from linseed.trainer.tuning.ranking import Trial, best_within_a_standard_error
from linseed.trainer.tuning.trials import Outcome


def judged(number, accuracy, decay, **scores):
    outcome = Outcome(steps=1, val_accuracy=accuracy, val_examples=1000, **scores)
    point = {"lr": 0.1, "weight_decay": decay}
    return Trial(str(number), str(number), number, point, {1: outcome}, frozenset(), TrialState.COMPLETE, {})


def test_the_monitor_s_score_decides_with_its_own_error():
    often, even = judged(0, 0.98, 0.0, score=-0.7, score_error=0.0), judged(1, 0.9, 0.0, score=-0.3, score_error=0.0)
    assert best_within_a_standard_error([often, even]) == even
    decayed = judged(2, 0.5, 1e-2, score=0.58, score_error=0.02)
    first, worse = (judged(number, 0.9, 0.0, score=score, score_error=0.03) for number, score in ((3, 0.6), (4, 0.56)))
    assert best_within_a_standard_error([first, worse, decayed]) == decayed


def test_of_equals_the_one_with_the_most_decay_wins():
    error = math.sqrt(0.9 * 0.1 / 1000)
    near, far = judged(1, 0.9 - 0.9 * error, 1e-3), judged(2, 0.9 - 1.1 * error, 1e-2)
    assert best_within_a_standard_error([judged(0, 0.9, 0.0), near, far]) == near
