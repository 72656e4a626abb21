"""What is measured of a step: every call is timed but the first, and a count that there is not is not made up.

What `measure` finds of a whole experiment is held against formulas in test_forecast.py.
"""

from trainer.measure import count_flops, time_steps


def test_a_backend_that_counts_nothing_leaves_nothing_but_the_figure_out():
    class Lowered:
        def cost_analysis(self):
            raise NotImplementedError

        def as_text(self):
            return 'stablehlo.custom_call @Sharding(%0)\nstablehlo.custom_call @"__onednn$convolution"(%1)'

    flops = count_flops(Lowered(), devices=1, optimizer="adamw", accumulation_parts=1)
    assert flops.step is None
    assert flops.missing == ("what other libraries compute (__onednn$convolution)",)


def test_timing_stops_at_its_limit_but_measures_once():
    calls = []

    def step(state, batch):
        calls.append(batch)
        return state + 1, {}

    seconds, state = time_steps(step, 0, batch_at=lambda index: index, steps=50, time_limit=0.0)
    assert len(seconds) == 1 and state == 2 and calls == [0, 1]
    seconds, state = time_steps(step, 0, batch_at=lambda index: index, steps=5, time_limit=60.0)
    assert len(seconds) == 5 and state == 6
