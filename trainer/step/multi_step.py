"""The multi-step: several train steps in one call of the devices, their metrics as rows of one array.

`make_train_steps` returns a pure per-device function, as the steps are. The rest is what the loop calls it with.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from linseed.trainer.step import metrics


def make_train_steps(train_step: Callable, *, steps_per_call: int, window: int) -> Callable:
    """`train_steps(carry, batches, resident, count) -> (carry, step)`: up to `steps_per_call` steps in one program.

    carry: {"state", "window"}; the window is float32 [window, K], and step t (0, 1, ...) writes its metrics to row
    t mod `window` (`metrics.pack`).
    batches: one batch where `steps_per_call` is 1. Else leaves [B, S, ...], S = `steps_per_call`, of which the first
    `count` (int32) are used.
    resident: {"image", "label"} of all examples, from which a batch takes its own by `index`; or {}.
    step: int32, the number of steps up to now, in a buffer that is never donated, so that the loop can wait for it.
    """

    def one(carry, batch, resident):
        batch = {**batch, **{key: jnp.take(values, batch["index"], axis=0) for key, values in resident.items()}}
        state, step_metrics = train_step(carry["state"], batch)
        row = carry["state"].step % window
        return {"state": state, "window": carry["window"].at[row].set(metrics.pack(step_metrics))}

    def train_steps(carry, batches, resident, count):
        if steps_per_call == 1:
            carry = one(carry, batches, resident)
        else:
            # `count` is a value of the program: fewer steps before a log or an evaluation need no compilation.
            in_order = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batches)
            step = lambda i, carry: one(carry, jax.tree.map(lambda leaf: leaf[i], in_order), resident)  # noqa: E731
            carry = jax.lax.fori_loop(0, count, step, carry)
        return carry, carry["state"].step + 0

    return train_steps


def first_carry(state, *, window: int, rows: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
    """The `carry` of the first call of `train_steps`, as host arrays: `state` and a window of metrics.

    rows: the metrics of the last steps before, at most `window` of them. The other rows are 0.
    """
    table = np.zeros((window, len(metrics.STEP_METRICS)), np.float32)
    if rows:
        table[window_rows(int(state.step) - len(rows), int(state.step), window=window)] = rows
    return {"state": state, "window": table}


def window_rows(start: int, step: int, *, window: int) -> np.ndarray:
    """int [step - start]: the rows of steps start, ..., step - 1 (counted from 0) in a window of metrics."""
    return np.arange(start, step) % window


def stacked(batches: Sequence[Any], *, steps_per_call: int):
    """1 to `steps_per_call` host batches as `train_steps` takes them: [B, S, ...], the last one repeated up to S."""
    if steps_per_call == 1:
        return batches[0]
    batches = [*batches, *batches[-1:] * (steps_per_call - len(batches))]
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *batches)


@contextlib.contextmanager
def settled(under_way: Callable[[], Any]) -> Iterator[None]:
    """Waits, on leaving, for the arrays of `under_way()`: a process that exits during a call may crash."""
    try:
        yield
    finally:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the error of a call is already being raised
            jax.block_until_ready(under_way())
