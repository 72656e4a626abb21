"""What is computed again gives the same gradients, and what is kept for them takes less memory."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models.cnn import Cnn
from linseed.models.layers import Compute
from linseed.models.resnet import PlainShortcutBlock, ResNet
from linseed.models.wide_resnet import PreActivationBlock, WideResNet
from linseed.trainer.errors import ConfigError
from linseed.trainer.runtime.data_parallel import AXIS, BACKENDS, DataParallel
from linseed.trainer.step.remat import REMAT

COMPUTE = Compute(jnp.float32, axis_name=AXIS, convolution=jax.lax.conv_general_dilated)


def resnet(*, stage_sizes):
    return ResNet(
        stem="cifar",
        block=PlainShortcutBlock,
        stage_sizes=stage_sizes,
        width=8,
        head_init=jax.nn.initializers.normal(0.1),
        num_classes=3,
        compute=COMPUTE,
    )


def wide_resnet():
    return WideResNet(block=PreActivationBlock, stage_size=1, widths=(8, 16), num_classes=3, compute=COMPUTE)


def cnn():
    return Cnn(widths=(8, 16), activation="gelu", dropout=0.3, num_classes=3, compute=COMPUTE)


MODELS = {
    "resnet": lambda: resnet(stage_sizes=(1, 1)),
    "deep": lambda: resnet(stage_sizes=(8,)),
    "wide_resnet": wide_resnet,
    "cnn": cnn,
}


@functools.cache
def initial(name):
    images = jnp.zeros((1, 8, 8, 3))
    return jax.jit(lambda key: MODELS[name]().init(key, images, train=False))(jax.random.key(0))


def compiled_gradient(name, *, remat, backend, examples=8):
    """The compiled step to the gradient of a loss in the parameters and new statistics of the norms; its arguments."""
    chosen = REMAT[remat]
    trained = chosen.model(MODELS[name]())
    images = jax.random.normal(jax.random.key(1), (examples, 8, 8, 3))
    variables = dict(initial(name))
    params = variables.pop("params")

    def step(params, images):
        @chosen.forward
        def forward(params):
            logits, state = trained.apply(
                {"params": params, **variables},
                images,
                train=True,
                rngs={"dropout": jax.random.key(2)},
                mutable=list(variables),
            )
            return jnp.sum(jnp.square(logits - 1.0)), state

        grads, state = jax.grad(forward, has_aux=True)(jax.lax.pcast(params, AXIS, to="varying"))
        return jax.lax.pmean((grads, state), AXIS)

    parallel = DataParallel(backend, devices=jax.devices()[:2])
    arguments = parallel.replicate(params), parallel.shard(images)
    return parallel.compile(step, donate=False).lower(*arguments).compile(), arguments


@functools.cache
def gradient(name, *, remat, backend):
    compiled, arguments = compiled_gradient(name, remat=remat, backend=backend)
    return compiled(*arguments)


@pytest.mark.parametrize(
    ("name", "remat", "backend"),
    [
        *itertools.product(["resnet"], ["blocks", "elementwise"], sorted(BACKENDS)),
        ("wide_resnet", "blocks", "pmap"),
        ("cnn", "elementwise", "shard_map"),
    ],
)
def test_gradients_and_statistics_are_the_same(name, remat, backend):
    plain, again = (gradient(name, remat=which, backend=backend) for which in ("none", remat))
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(plain))
    assert largest > 0
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * largest)


def test_parameters_keep_their_names_and_values():
    model = MODELS["resnet"]()
    images = jnp.zeros((2, 8, 8, 3))
    plain, blocks = (
        REMAT[remat].model(model).init(jax.random.key(0), images, train=False) for remat in ("none", "blocks")
    )
    jax.tree.map(np.testing.assert_array_equal, plain, blocks)


def kept_bytes(remat):
    """What the forward pass of a small network, on one device, hands to its backward pass."""
    chosen, model = REMAT[remat], MODELS["deep"]().clone(compute=COMPUTE._replace(axis_name=None))
    trained = chosen.model(model)
    images = jnp.zeros((8, 16, 16, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    params = variables.pop("params")
    stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
    forward = chosen.forward(
        lambda params: trained.apply({"params": params, **stats}, images, train=True, mutable=list(stats))
    )
    backward = jax.eval_shape(lambda params: jax.vjp(forward, params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


def test_less_is_kept_the_more_is_computed_again():
    none, elementwise, blocks = (kept_bytes(remat) for remat in ("none", "elementwise", "blocks"))
    assert blocks < elementwise < 0.8 * none, (none, elementwise, blocks)


def test_a_step_by_blocks_needs_less_memory():
    """By XLA's own analysis of the compiled step."""
    none, blocks = (
        compiled_gradient("deep", remat=remat, backend="pmap", examples=256)[0].memory_analysis().temp_size_in_bytes
        for remat in ("none", "blocks")
    )
    assert blocks < 0.9 * none, (none, blocks)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="config.remat='blocks' needs a residual network"):
        REMAT["blocks"].model(MODELS["cnn"]())
