"""Several train steps in one call of the devices, with the images there and the metrics in one array.

Like the steps, a function of its arguments alone; `trainer.runtime.data_parallel` compiles it.
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

    carry: {"state", "window"}; the metrics of step t (0, 1, ...) are row t mod `window` of float32 [window, K]
    (`metrics.pack`). batches: a batch where `steps_per_call` is 1; else leaves [B, S, ...], S = `steps_per_call`, of
    which the first `count` (int32) batches are stepped through. resident: {"image", "label"} of all examples, of which
    a batch names its own in `index`; or {}. step: int32, the steps made so far, in a buffer that is never donated.
    """

    def one(carry, batch, resident):
        batch = {**batch, **{key: jnp.take(values, batch["index"], axis=0) for key, values in resident.items()}}
        state, found = train_step(carry["state"], batch)
        row = carry["state"].step % window
        return {"state": state, "window": carry["window"].at[row].set(metrics.pack(found))}

    def train_steps(carry, batches, resident, count):
        if steps_per_call == 1:
            carry = one(carry, batches, resident)
        else:
            # A loop with a count of its own, so that the steps left before a log or an evaluation are no other program.
            in_order = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batches)
            step = lambda i, carry: one(carry, jax.tree.map(lambda leaf: leaf[i], in_order), resident)  # noqa: E731
            carry = jax.lax.fori_loop(0, count, step, carry)
        return carry, carry["state"].step + 0

    return train_steps


def first_carry(state, *, window: int, rows: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
    """What the first call of `make_train_steps` is given: `state` and a window of metrics, host arrays.

    rows: the metrics of the last steps before, at most `window`; the rest is empty.
    """
    table = np.zeros((window, len(metrics.STEP_METRICS)), np.float32)
    if rows:
        table[window_rows(int(state.step) - len(rows), int(state.step), window=window)] = rows
    return {"state": state, "window": table}


def window_rows(start: int, step: int, *, window: int) -> np.ndarray:
    """int [step - start]: where steps start, ..., step - 1 (from 0) stand in the window."""
    return np.arange(start, step) % window


def stacked(batches: Sequence[Any], *, steps_per_call: int):
    """1 to `steps_per_call` host batches as `make_train_steps` takes them, [B, S, ...] filled up with the last."""
    if steps_per_call == 1:
        return batches[0]
    batches = [*batches, *batches[-1:] * (steps_per_call - len(batches))]
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *batches)


@contextlib.contextmanager
def settled(under_way: Callable[[], Any]) -> Iterator[None]:
    """Waits, on leaving, for the arrays of `under_way()`: a process that ends in the middle of a call may crash."""
    try:
        yield
    finally:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # what went wrong is already on its way
            jax.block_until_ready(under_way())
