"""MobileNetV2 and MobileNetV3; their blocks are tested in test_efficientnet.py."""

from functools import partial

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models import MODELS, mobilenet, names
from linseed.models.channel_attention import SqueezeExcite
from linseed.models.inverted_residual import ConvBlock, DepthwiseSeparable, InvertedResidual, Row
from linseed.models.layers import Compute

FLOAT32 = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)

# Of timm 1.0.31, with 1000 classes.
PARAMETERS = {
    "mobilenetv2_120d": 5_831_144,
    "mobilenetv3_rw": 5_479_918,
    "tf_mobilenetv3_small_minimal_100": 2_044_736,
}


def _shapes(model, size=32):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


def _small(name, **fields):
    """A network with a block of each kind, in the style of `name`."""
    stages = (
        (Row(DepthwiseSeparable, 1, 3, 2, 1, 8, activation=nn.relu),),
        (Row(InvertedResidual, 1, 5, 1, 5, 16, squeeze=True),),
        (Row(ConvBlock, 1, 1, 1, 1, 24),),
    )
    model = MODELS[name](num_classes=5, compute=FLOAT32, **fields)
    return model.clone(stages=stages, stem_width=8, num_features=32)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_that_of_timm(name):
    model = MODELS[name](num_classes=1000, compute=FLOAT32)
    assert sum(leaf.size for leaf in jax.tree.leaves(_shapes(model)["params"])) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("mobilenetv2_100", {"conv_head.weight", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var"}),
        ("mobilenetv3_small_100", {"conv_head.weight", "conv_head.bias"}),
        ("mobilenetv3_rw", {"conv_head.weight"}),
    ],
)
def test_tensors_have_the_names_of_timm(name, last):
    model = _small(name)
    paths = flax.traverse_util.flatten_dict(_shapes(model), sep="/")
    found = {names.torch_name(path.partition("/")[2], model.torch_names) for path in paths}
    kernels = """conv_stem blocks.0.0.conv_dw blocks.0.0.conv_pw blocks.1.0.conv_pw blocks.1.0.conv_dw
    blocks.1.0.se.conv_reduce blocks.1.0.se.conv_expand blocks.1.0.conv_pwl blocks.2.0.conv classifier"""
    biases = "blocks.1.0.se.conv_reduce blocks.1.0.se.conv_expand classifier"
    norms = """bn1 blocks.0.0.bn1 blocks.0.0.bn2 blocks.1.0.bn1 blocks.1.0.bn2 blocks.1.0.bn3 blocks.2.0.bn1"""
    expected = last | {f"{layer}.weight" for layer in kernels.split()} | {f"{layer}.bias" for layer in biases.split()}
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        expected |= {f"{layer}.{leaf}" for layer in norms.split()}
    assert found == expected and len(paths) == len(expected)


def test_the_inputs_are_those_of_networks_of_the_family():
    assert set(mobilenet.INPUTS) <= set(mobilenet.NAMES)


@pytest.mark.parametrize(
    ("name", "width"), [("mobilenetv2_100", 2), ("mobilenetv3_large_100", 16), ("mobilenetv3_rw", 10)]
)
def test_squeeze_and_excitation_has_the_width_of_the_family(name, width):
    """A quarter of the 8 channels of the input, or of the 40 within the block, in eights or as it is."""
    widths = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, SqueezeExcite):
            widths.append(context.module.width)
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        _shapes(_small(name))
    assert widths == [width]


def test_features_come_after_the_mean():
    model, images = _small("mobilenetv3_large_100", dropout=0.5), jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
    apply = partial(model.apply, train=False, capture_intermediates=True, mutable=["intermediates"])
    logits, state = jax.jit(apply)(variables, images)
    last = state["intermediates"]["stage3_block1"]["__call__"][0].mean(axis=(1, 2))
    params = variables["params"]
    features = nn.hard_swish(last @ params["features"]["kernel"][0, 0] + params["features"]["bias"])
    expected = features @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_minimal_networks_have_small_kernels_and_nothing_else():
    for name in ("tf_mobilenetv3_large_minimal_100", "tf_mobilenetv3_small_minimal_100"):
        rows = [row for stage in mobilenet.NAMES[name].keywords["stages"] for row in stage]
        assert {row.kernel for row in rows} == {1, 3}
        assert not any(row.squeeze or row.activation for row in rows)


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 1), ("cifar", 4)])
def test_the_stem_chooses_the_size_of_the_last_feature_map(stem, size):
    model = MODELS["mobilenetv3_small_100"](num_classes=5, compute=FLOAT32, stem=stem)
    apply = partial(model.init_with_output, train=False, capture_intermediates=True, mutable=True)
    _, variables = jax.eval_shape(apply, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert variables["intermediates"]["stage6_block1"]["__call__"][0].shape == (1, size, size, 576)
