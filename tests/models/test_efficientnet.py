"""EfficientNets and the blocks that they share with MobileNets."""

from functools import partial

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models import INPUTS, MODELS, efficientnet, inverted_residual, names
from linseed.models.channel_attention import SqueezeExcite
from linseed.models.inverted_residual import (
    ConvBlock,
    DepthwiseSeparable,
    FusedInvertedResidual,
    InvertedResidual,
    MobileBlock,
    Row,
    Style,
)
from linseed.models.layers import Compute
from linseed.trainer.step.remat import REMAT

FLOAT32 = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)
STYLE = Style(nn.silu)

# Of timm 1.0.31, with 1000 classes.
PARAMETERS = {
    "tf_efficientnet_lite0": 4_652_008,
    "tf_efficientnetv2_b3": 14_358_406,
    "efficientnetv2_rw_t": 13_649_388,
}


def _model(name, **fields):
    return MODELS[name](num_classes=5, compute=FLOAT32, **fields)


def _shapes(model, size=32):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


def _small(name="efficientnet_b0", **fields):
    """A network with a block of each kind, in the style of `name`."""
    stages = (
        (Row(ConvBlock, 1, 3, 1, 1, 8),),
        (Row(DepthwiseSeparable, 1, 3, 1, 1, 8), Row(FusedInvertedResidual, 1, 3, 1, 2, 8)),
        (Row(InvertedResidual, 1, 5, 2, 2, 16, squeeze=True),),
    )
    return _model(name, **fields).clone(stages=stages, stem_width=8, num_features=24)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_that_of_timm(name):
    model = MODELS[name](num_classes=1000, compute=FLOAT32)
    assert sum(leaf.size for leaf in jax.tree.leaves(_shapes(model)["params"])) == PARAMETERS[name]


def test_tensors_have_the_names_of_timm():
    paths = flax.traverse_util.flatten_dict(_shapes(_small()), sep="/")
    found = {names.torch_name(path.partition("/")[2], _small().torch_names) for path in paths}
    kernels = """conv_stem blocks.0.0.conv blocks.1.0.conv_dw blocks.1.0.conv_pw blocks.1.1.conv_exp blocks.1.1.conv_pwl
    blocks.2.0.conv_pw blocks.2.0.conv_dw blocks.2.0.se.conv_reduce blocks.2.0.se.conv_expand blocks.2.0.conv_pwl
    conv_head classifier"""
    biases = "blocks.2.0.se.conv_reduce blocks.2.0.se.conv_expand classifier"
    norms = """bn1 blocks.0.0.bn1 blocks.1.0.bn1 blocks.1.0.bn2 blocks.1.1.bn1 blocks.1.1.bn2
    blocks.2.0.bn1 blocks.2.0.bn2 blocks.2.0.bn3 bn2"""
    expected = {f"{layer}.weight" for layer in kernels.split()} | {f"{layer}.bias" for layer in biases.split()}
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        expected |= {f"{layer}.{leaf}" for layer in norms.split()}
    assert found == expected and len(paths) == len(expected)


def test_the_inputs_are_those_of_networks_of_the_family():
    assert set(efficientnet.INPUTS) <= set(efficientnet.NAMES)
    assert INPUTS["tf_efficientnet_lite3"] == (300, 0.904, "bilinear", (0.5,) * 3, (0.5,) * 3, "crop")
    stretched = {name for name, images in efficientnet.INPUTS.items() if images.fit == "stretch"}
    assert stretched == {"efficientnet_b5", *(f"tf_efficientnetv2_{size}" for size in ("b3", "m", "l", "xl"))}


@pytest.mark.parametrize(
    ("width", "least", "expected"),
    [(3, 0.9, 8), (20, 0.9, 24), (17.6, 0.9, 16), (19.2, 0.9, 24), (19.2, 0.0, 16), (35.2, 0.9, 32), (144, 0.9, 144)],
)
def test_widths_are_multiples_of_eight_that_lose_at_most_a_tenth(width, least, expected):
    assert inverted_residual.rounded(width, least=least) == expected


def test_scaling_multiplies_widths_and_rounds_numbers_of_blocks_up():
    stages = tuple((Row(ConvBlock, blocks, 3, 1, 1, 40),) for blocks in (1, 4, 1))
    scaled = partial(inverted_residual.scaled, stages, width=1.4, depth=1.8)
    assert [(row.blocks, row.width) for (row,) in scaled()] == [(2, 56), (8, 56), (2, 56)]
    assert [row.blocks for (row,) in scaled(keep_ends=True)] == [1, 8, 1]


@pytest.mark.parametrize(("padding", "first"), [("alike", 0), ("SAME", 1)])
def test_a_strided_filter_is_centred_where_pytorch_or_tensorflow_has_it(padding, first):
    style = Style(lambda x: x, padding=padding, epsilon=0.0)
    block = ConvBlock(width=1, kernel=3, stride=2, style=style, compute=FLOAT32)
    x = jnp.arange(36.0).reshape(1, 6, 6, 1)
    shapes = jax.eval_shape(partial(block.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    variables["params"]["conv"]["kernel"] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    # Running mean and variance, scale and bias are ones.
    np.testing.assert_allclose(block.apply(variables, x, train=False), x[:, first::2, first::2])


@pytest.mark.parametrize("kind", [ConvBlock, DepthwiseSeparable, InvertedResidual, FusedInvertedResidual])
def test_a_block_of_one_shape_adds_its_input(kind):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    block = kind(width=8, kernel=3, stride=1, expansion=2.0, squeeze=True, style=STYLE, compute=FLOAT32)
    shapes = jax.eval_shape(partial(block.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    np.testing.assert_array_equal(block.apply(variables, x, train=False), x)
    for other in (block.clone(shortcut=False), block.clone(stride=2)):
        np.testing.assert_array_equal(other.apply(variables, x[:, :1, :1], train=False), 0.0)


def test_blocks_can_be_rematerialised():
    assert _shapes(REMAT["blocks"].model(_small())) == _shapes(_small())


def test_squeeze_and_excitation_scales_channels_by_a_gate_of_their_means():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    layer = SqueezeExcite(width=2, activation=nn.silu, gate=nn.hard_sigmoid, compute=FLOAT32)
    y, variables = layer.init_with_output(jax.random.key(1), x)
    hidden, scale = (variables["params"][key]["kernel"][0, 0] for key in ("fc1", "fc2"))
    gate = nn.hard_sigmoid(nn.silu(x.mean(axis=(1, 2)) @ hidden) @ scale)
    np.testing.assert_allclose(y, x * gate[:, None, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("stem", "sizes"), [("imagenet", [16, 16, 8, 4, 2, 2, 1]), ("cifar", [32, 32, 32, 16, 8, 8, 4])]
)
def test_the_stem_chooses_the_sizes_of_the_feature_maps(stem, sizes):
    found = {}

    def spy(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, MobileBlock) and context.method_name == "__call__":
            found[context.module.name] = out.shape[1]
        return out

    with nn.intercept_methods(spy):
        _shapes(_model("efficientnet_b0", stem=stem))
    assert [found[name] for name in ("stem", *(f"stage{i}_block1" for i in range(1, 7)))] == sizes
    assert found["stage7_block1"] == found["features"] == sizes[-1]


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("shape", [(1, 1), (17, 40)])
def test_images_may_have_any_size(name, shape):
    images = jax.ShapeDtypeStruct((2, *shape, 3), jnp.float32)
    logits, _ = jax.eval_shape(partial(_small(name).init_with_output, train=False), jax.random.key(0), images)
    assert logits.shape == (2, 5)


def test_drop_path_rises_linearly_to_the_rate_of_the_last_block():
    rates = {}

    def spy(call, args, kwargs, context):
        if isinstance(context.module, MobileBlock):
            rates[context.module.name] = context.module.drop_rate
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        _shapes(_small(drop_path=0.4))
    blocks = [rates[name] for name in ("stage1_block1", "stage2_block1", "stage2_block2", "stage3_block1")]
    np.testing.assert_allclose(blocks, [0.1, 0.2, 0.3, 0.4])
    assert rates["stem"] == rates["features"] == 0.0


def test_dropout_acts_in_training_alone():
    model, images = _small(dropout=0.5), jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
    train = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    first, second = (train(variables, images, rngs={"dropout": jax.random.key(seed)})[0] for seed in (0, 1))
    assert not np.array_equal(first, second)
    evaluate = [jax.jit(partial(_small(dropout=rate).apply, train=False))(variables, images) for rate in (0.0, 0.5)]
    np.testing.assert_array_equal(*evaluate)


def test_initial_values_are_those_of_the_implementations_in_tensorflow():
    block = InvertedResidual(width=64, kernel=3, stride=1, expansion=8.0, style=STYLE, compute=FLOAT32)
    params = block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)), train=False)["params"]
    for layer, fan in (("expand", 512), ("depthwise", 9), ("project", 64)):
        assert float(params[layer]["kernel"].std()) == pytest.approx((2 / fan) ** 0.5, rel=0.05)
