"""Toy losses of one or two parameters, and the paths of optimisers down them.

A surface maps a point, float32 [n], to its loss, a float32 scalar; n is 1 or 2.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linseed.trainer.optim.chain import make_tx

CONDITION = 100.0


def bowl(point: jax.Array) -> jax.Array:
    """(x^2 + 100 y^2) / 2: condition number 100, x the shallow axis and y the steep one; the minimum is 0 at (0, 0)."""
    x, y = point
    return (x**2 + CONDITION * y**2) / 2


def turned_bowl(point: jax.Array) -> jax.Array:
    """`bowl` rotated by 45 degrees: neither axis is the steep one."""
    x, y = point
    return bowl(jnp.stack([x + y, y - x]) / np.sqrt(2).astype(np.float32))


def round_bowl(point: jax.Array) -> jax.Array:
    """(x^2 + y^2) / 2: condition number 1; the minimum is 0 at (0, 0)."""
    return jnp.sum(point**2) / 2


def saddle(point: jax.Array) -> jax.Array:
    """x^2 / 2 - y^2 / 2 + y^4 / 4: a saddle of loss 0 at (0, 0), its ridge along y = 0, minima of -1/4 at (0, +-1)."""
    x, y = point
    return x**2 / 2 - y**2 / 2 + y**4 / 4


def dented_bowl(point: jax.Array) -> jax.Array:
    """x^2 / 10 - exp(-(x - 3)^2 / 0.18) / 2: a local minimum near x = 3, the minimum at x = 0."""
    (x,) = point
    return x**2 / 10 - jnp.exp(-((x - 3) ** 2) / 0.18) / 2


def descend(
    surface: Callable[[jax.Array], jax.Array],
    start: Sequence[float],
    *,
    name: str,
    schedule: optax.Schedule,
    steps: int,
    noise: float,
    **kwargs,
) -> np.ndarray:
    """The points that `steps` updates of the optimiser `name` visit, `start` first: float32 [steps + 1, n].

    schedule: number of updates so far -> learning rate. noise: standard deviation of normal noise on each component of
    the gradient, redrawn each step and the same for every optimiser. kwargs: parameters of the entry in `OPTIMIZERS`,
    without decay. Raises ConfigError as `make_tx` does.
    """
    tx = make_tx(name, schedule=schedule, clip_norm=0.0, weight_decay=0.0, **kwargs)
    start = jnp.asarray(start, jnp.float32)

    def step(carry, key):
        point, opt_state = carry
        error = noise * jax.random.normal(key, point.shape)

        def grad_fn(point):
            return jax.grad(surface)(point) + error

        updates, opt_state = tx.update(grad_fn(point), opt_state, point, grad_fn=grad_fn)
        point = optax.apply_updates(point, updates)
        return (point, opt_state), point

    @jax.jit
    def run(start, keys):
        return jax.lax.scan(step, (start, tx.init(start)), keys)[1]

    return np.concatenate([start[None], run(start, jax.random.split(jax.random.key(0), steps))])


def losses(surface: Callable[[jax.Array], jax.Array], points: np.ndarray) -> np.ndarray:
    """The loss at each of `points`, float32 [..., n]: float32 [...]."""
    flat = jax.jit(jax.vmap(surface))(points.reshape(-1, points.shape[-1]))
    return np.asarray(flat).reshape(points.shape[:-1])


def steps_to(surface: Callable[[jax.Array], jax.Array], path: np.ndarray, *, loss: float) -> int | None:
    """The number of updates after which `path` stays at or below `loss`; None if it ends above."""
    above = np.flatnonzero(~(losses(surface, path) <= loss))
    reached = above[-1] + 1 if above.size else 0
    return int(reached) if reached < len(path) else None
