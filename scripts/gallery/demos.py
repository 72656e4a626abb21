"""The experiments of the gallery: optimisers, their starts and learning rates, and the reasons for these rates.

Each function returns paths by label, for `draw` and the tests. Nothing is drawn here.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from linseed.scripts.gallery import surfaces
from linseed.trainer.optim.schedules import Plateau, make_schedule

MOMENTUM = dict(momentum=0.9)
RMSPROP = dict(decay=0.99, eps=1e-7)
ADAM = dict(b1=0.9, b2=0.999, eps=1e-8)

# The bowl. SGD has the best rate for the worst start, 2 / (1 + 100). The others have the lecture's constants and the
# rate, of 0.005, 0.01, 0.02, 0.05, 0.1, ... 2, that reaches 1e-3 first and stays there. RMSProp has the next lower
# rate: 0.1 is fastest, but nearly never settles.
BOWL_START, BOWL_STEPS, BOWL_SHOWN, BOWL_LOSS = (-4.0, 1.0), 400, 50, 1e-3
BOWL_RUNS = {
    "sgd": dict(lr=2 / 101),
    "momentum": dict(lr=0.005, **MOMENTUM),
    "nesterov": dict(lr=0.01, **MOMENTUM),
    "rmsprop": dict(lr=0.05, **RMSPROP),
    "adam": dict(lr=0.1, **ADAM),
}

# On the saddle's ridge, y = 0, the gradient has no y component: no optimiser leaves it, momentum or not.
SADDLE_OFF_RIDGE, SADDLE_STEPS, SADDLE_RATE = 1e-6, 70, 0.1
SADDLE_RUNS = {"sgd": {}, "momentum": MOMENTUM}

DENT_START, DENT_STEPS, DENT_RATE = (5.0,), 300, 0.05
DENT_RUNS = {"sgd": {}, "momentum": MOMENTUM}

NOISE, NOISE_START, NOISE_STEPS, NOISE_RATE = 1.0, (-4.0, 2.0), 300, 0.2

ADAM_RATE, ADAM_STEPS = 0.1, 60

SCHEDULE_STEPS, SCHEDULE_WARMUP = 100, 10
SCHEDULE_SETTINGS = {
    "constant": {},
    "cosine": {},
    "inverse_sqrt": dict(timescale_steps=10),
    "linear": {},
    "one_cycle": dict(rise_steps=30, div_factor=25.0, final_div_factor=1e4),
    "plateau": dict(factor=0.5, patience=4, rtol=1e-3, window_steps=2),
    "sgdr": dict(cycle_steps=15, cycle_factor=2.0),
    "step": dict(at_steps=(30, 60, 90), factor=0.1),
}


def bowl_paths(surface: Callable[[jax.Array], jax.Array], start: tuple[float, float]) -> dict[str, np.ndarray]:
    """The path of each of `BOWL_RUNS`, float32 [BOWL_STEPS + 1, 2]."""
    return {
        name: _descend(surface, start, name=name, steps=BOWL_STEPS, noise=0.0, **run) for name, run in BOWL_RUNS.items()
    }


def saddle_paths(off_ridge: float) -> dict[str, np.ndarray]:
    """SGD and momentum at the same rate, from x = -1 at the distance `off_ridge` from the ridge."""
    return {
        name: _descend(
            surfaces.saddle, (-1.0, off_ridge), name=name, lr=SADDLE_RATE, steps=SADDLE_STEPS, noise=0.0, **run
        )
        for name, run in SADDLE_RUNS.items()
    }


def dent_paths() -> dict[str, np.ndarray]:
    """SGD and momentum at the same rate, from x = 5, float32 [DENT_STEPS + 1, 1]."""
    return {
        name: _descend(surfaces.dented_bowl, DENT_START, name=name, lr=DENT_RATE, steps=DENT_STEPS, noise=0.0, **run)
        for name, run in DENT_RUNS.items()
    }


def noisy_paths() -> dict[str, np.ndarray]:
    """Paths on the round bowl, with noise of one standard deviation in each component of the gradient.

    Momentum has the rate (1 - momentum) lr: under a constant gradient it moves as far as SGD.
    """
    span = dict(surface=surfaces.round_bowl, start=NOISE_START, steps=NOISE_STEPS)
    cosine = make_schedule("cosine", lr=NOISE_RATE, warmup_steps=0, total_steps=NOISE_STEPS)
    slow = NOISE_RATE * (1 - MOMENTUM["momentum"])
    return {
        "no noise": _descend(**span, name="sgd", lr=NOISE_RATE, noise=0.0),
        "sgd": _descend(**span, name="sgd", lr=NOISE_RATE, noise=NOISE),
        "momentum": _descend(**span, name="momentum", lr=slow, noise=NOISE, **MOMENTUM),
        "sgd, cosine schedule": surfaces.descend(**span, name="sgd", schedule=cosine, noise=NOISE),
    }


def noise_floor() -> float:
    """The mean loss of SGD in the long run, on the round bowl of n = 2 axes: n / 2 * lr sigma^2 / (2 - lr).

    Each component follows x -= lr (x + noise); its variance v satisfies v = (1 - lr)^2 v + lr^2 sigma^2.
    """
    return NOISE_RATE * NOISE**2 / (2 - NOISE_RATE)


def adam_step_sizes(steps: int) -> dict[str, np.ndarray]:
    """The sizes of Adam's first steps under a constant gradient, in units of the learning rate: [steps]."""

    def slope(point):
        return jnp.sum(point)

    return {
        name: -np.diff(_descend(slope, (0.0,), name=name, lr=1.0, steps=steps, noise=0.0, **ADAM)[:, 0])
        for name in ("adam", "adam_uncorrected")
    }


def adam_paths() -> dict[str, np.ndarray]:
    """Adam on x^2 / 2 with and without bias correction, from x = one learning rate: float32 [ADAM_STEPS + 1, 1]."""
    start = (ADAM_RATE,)
    return {
        name: _descend(surfaces.round_bowl, start, name=name, lr=ADAM_RATE, steps=ADAM_STEPS, noise=0.0, **ADAM)
        for name in ("adam", "adam_uncorrected")
    }


def made_up_loss(step: np.ndarray) -> np.ndarray:
    """A loss for `plateau` to watch: it falls, stalls at 0.5 and at 0.25, and falls in between."""
    return np.interp(step, [0, 25, 45, 60], [1.0, 0.5, 0.5, 0.25])


def schedule_rates(name: str, *, warmup_steps: int) -> np.ndarray:
    """The learning rate at each step as a fraction of the peak, float32 [SCHEDULE_STEPS]."""
    schedule = make_schedule(
        name, lr=1.0, warmup_steps=warmup_steps, total_steps=SCHEDULE_STEPS, **SCHEDULE_SETTINGS[name]
    )
    steps = np.arange(SCHEDULE_STEPS)
    if not isinstance(schedule, Plateau):
        return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(steps)))

    def step(state, loss):
        return schedule.update(state, value=loss), schedule(state)

    return np.asarray(jax.lax.scan(step, schedule.init(), jnp.asarray(made_up_loss(steps), jnp.float32))[1])


class _Alone(nn.Module):
    activation: Any

    @nn.compact
    def __call__(self, x):
        return self.activation.build("activation")(x)


def activation_curve(activation: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An activation and its derivative at `x`, float32 [N] each, with its initial parameters.

    activation: has `build` and `pieces`, as `models.layers.Activation`. An activation of several pieces gets as many
    lines through zero, of slopes from 1 to -1/2: for two, max(x, -x / 2).
    """
    slopes = np.linspace(1.0, -0.5, activation.pieces, dtype=np.float32)
    module = _Alone(activation)

    @jax.jit
    def curve(x):
        variables = module.init(jax.random.key(0), slopes)
        return jax.vmap(jax.value_and_grad(lambda x: module.apply(variables, x * slopes)[0]))(x)

    return tuple(map(np.asarray, curve(np.asarray(x, np.float32))))


def _descend(surface, start, *, name, lr, steps, noise, **kwargs):
    schedule = optax.constant_schedule(lr)
    return surfaces.descend(surface, start, name=name, schedule=schedule, steps=steps, noise=noise, **kwargs)
