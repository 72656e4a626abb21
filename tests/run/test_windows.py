"""Windows: they end at every log, at every evaluation and at the end of the run, and nowhere else."""

import pytest

from linseed.trainer.run.windows import Windows


@pytest.mark.parametrize(("log_every", "eval_every", "total_steps"), [(3, 4, 24), (5, 5, 12), (1, 7, 9), (50, 40, 30)])
def test_a_window_ends_at_each_log_and_evaluation_and_at_the_end(log_every, eval_every, total_steps):
    windows = Windows(log_every, eval_every, total_steps)
    logs, evaluations = (range(every, total_steps, every) for every in (log_every, eval_every))
    ends = sorted({*logs, *evaluations, total_steps})
    for start, end in zip([0, *ends], ends, strict=False):
        for step in range(start, end):
            assert (windows.end(step), windows.begun(step)) == (end, step - start)
    assert [end for end in ends if windows.is_evaluated(end)] == [*evaluations, total_steps]
