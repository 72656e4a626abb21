"""Things measured in turns, so that a noisy machine slows all of them alike."""

import itertools
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax


class Times(NamedTuple):
    """Seconds of one call, a round each: on the clock, and of this process on all cores."""

    wall: list[float]
    cpu: list[float]


def in_turns(calls: Mapping[Hashable, Callable], *, rounds: int) -> dict[Hashable, Times]:
    """The times of each call, one round after the other; the first round compiles and is not counted.

    A call takes nothing and returns arrays, which are waited for.
    """
    found = {name: Times([], []) for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            if round_:
                found[name].wall.append(time.perf_counter() - wall)
                found[name].cpu.append(time.process_time() - cpu)
    return found


def stepper(step: Callable, state: Any, batches: Sequence, *, steps: int) -> Callable:
    """A call that goes on training for `steps` steps, over `batches` again and again.

    step: (state, batch) -> (state, metrics), which gives `state` up.
    """
    states, batches = [state], itertools.cycle(batches)

    def call():
        for _ in range(steps):
            states.append(step(states.pop(), next(batches))[0])
        return states

    return call


def ratio(over: list[float], under: list[float]) -> float:
    """The median over rounds of `over` / `under`, each of one round: noise that lasts a round drops out."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
