"""A normalisation over a single value is refused before the first step, wherever it comes from."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.runs import run, tiny

from linseed.trainer import train
from linseed.trainer.config.changes import changed
from linseed.trainer.errors import ConfigError
from linseed.trainer.experiment import Shared, build
from linseed.trainer.step import normalization
from linseed.trainer.tuning import checks


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.BatchNorm(use_running_average=False), (3, 2, 2, 4)),
        (nn.BatchNorm(use_running_average=False), (5, 4)),
        (nn.BatchNorm(use_running_average=False, axis=1), (3, 4, 2)),
        (nn.BatchNorm(use_running_average=False, axis_name="batch"), (3, 4)),
        (nn.GroupNorm(num_groups=1), (2, 2, 2, 4)),
        (nn.GroupNorm(num_groups=None, group_size=3), (2, 6)),
        (nn.GroupNorm(num_groups=2, reduction_axes=-1), (2, 3, 6)),
        (nn.InstanceNorm(), (2, 2, 3, 4)),
        (nn.LayerNorm(), (2, 2, 5)),
        (nn.LayerNorm(reduction_axes=(1, 2)), (2, 3, 2)),
        (nn.RMSNorm(), (2, 4)),
    ],
)
def test_a_statistic_is_of_as_many_values_as_an_output_depends_on(module, shape):
    variables = module.init(jax.random.key(0), jnp.ones(shape))
    devices = 6
    x = jax.random.normal(jax.random.key(1), (devices, *shape))
    counted = []

    def apply(x):
        counted.append(normalization.values(module, x))
        return module.apply(variables, x, mutable=["batch_stats"])[0]

    gradient = jax.jit(jax.grad(lambda x: jnp.ravel(jax.vmap(apply, axis_name="batch")(x))[0]))(x)
    assert counted[0] == np.count_nonzero(gradient)


def test_devices_that_average_in_groups_count_those_of_a_group():
    norm = nn.BatchNorm(use_running_average=False, axis_name="batch", axis_index_groups=[[0, 1, 2], [3, 4, 5]])
    assert normalization.values(norm, jnp.ones((2, 4))) == 6


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.devices
    monkeypatch.setattr(train.jax, "devices", lambda: devices()[:1])


def mlp(normalization, *, width=4, **changes):
    model = {"name": "mlp", "widths": (width,), "normalization": normalization}
    return changed(tiny(), {"model": model, "data.augment": "", "ema_decay": 0.0, **changes})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (mlp("batch", **{"data.batch_size": 1}), "block1/norm (BatchNorm) normalises over a single value"),
        (mlp("batch", **{"data.batch_size": 4, "accumulation_parts": 4}), "8 or more times config.accumulation_parts"),
        (mlp("layer", width=1), "block1/norm (GroupNorm) normalises over a single value"),
        (mlp("group", width=1), "an example has the shape 1 there; make that layer wider"),
        # The last of four blocks sees feature maps of 1x1.
        (changed(tiny(), {"data.batch_size": 1, "model.widths": (4, 4, 4, 4)}), "block4/norm (BatchNorm)"),
    ],
)
def test_a_run_that_cannot_learn_is_refused_before_its_first_step(one_device, tmp_path, config, says):
    with pytest.raises(ConfigError) as refused:
        run(config, tmp_path)
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert not any((tmp_path / "checkpoints").iterdir())


def test_the_cure_works_in_the_same_workdir(one_device, tmp_path):
    with pytest.raises(ConfigError, match="raise config.data.batch_size to 8 or more times"):
        run(mlp("batch", **{"data.batch_size": 2, "accumulation_parts": 2}), tmp_path)
    run(mlp("batch", **{"data.batch_size": 16, "accumulation_parts": 2, "horizon.epochs": 2.0}), tmp_path)


def test_the_probe_of_tune_refuses_too(one_device, tmp_path):
    experiment = build(mlp("batch", **{"data.batch_size": 1}), tmp_path, shared=Shared())
    with pytest.raises(ConfigError, match="normalises over a single value"):
        checks.probe(experiment)


def test_running_averages_may_be_those_of_one_example():
    frozen = nn.BatchNorm(use_running_average=True)
    variables = frozen.init(jax.random.key(0), jnp.ones((1, 4)))
    with normalization.checked():
        frozen.apply(variables, jnp.ones((1, 4)))
        nn.BatchNorm().apply(variables, jnp.ones((1, 4)), use_running_average=True)
        with pytest.raises(ConfigError):
            nn.BatchNorm().apply(variables, jnp.ones((1, 4)), use_running_average=False, mutable=["batch_stats"])
