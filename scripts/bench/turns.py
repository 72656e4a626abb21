"""Measures calls in turns, so a noisy machine slows all of them alike."""

import itertools
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax


class Times(NamedTuple):
    """Seconds of a call in each round: on the clock, and of this process on all cores."""

    wall: list[float]
    cpu: list[float]


def in_turns(calls: Mapping[Hashable, Callable], *, rounds: int) -> dict[Hashable, Times]:
    """The times of each call, round by round; the first round compiles and does not count.

    A call takes no arguments and returns arrays; the time includes waiting for them.
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
    """A call that continues training for `steps` steps, cycling through `batches`.

    step: (state, batch) -> (state, metrics); it may donate `state`.
    """
    states, batches = [state], itertools.cycle(batches)

    def call():
        for _ in range(steps):
            states.append(step(states.pop(), next(batches))[0])
        return states

    return call


def ratio(over: list[float], under: list[float]) -> float:
    """The median over rounds of `over` / `under` of the same round: noise that lasts a round cancels."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
