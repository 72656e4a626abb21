"""ResNets by timm's names: their tensors, stems, shortcuts, groups and channel attention."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models import INPUTS, MODELS, names
from linseed.models.channel_attention import EfficientAttention, SqueezeExcite, squeeze_excite
from linseed.models.layers import Compute, Input
from linseed.models.residual_blocks import BasicBlock, BottleneckBlock

FLOAT32 = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)


def build(name, **kwargs):
    """The network of a name, by default with one block and ten classes."""
    model = MODELS[name](num_classes=10, compute=FLOAT32, **kwargs)
    return model.clone(stage_sizes=(1,))


def shapes(model, **kwargs):
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    apply = partial(model.init_with_output, train=False, **kwargs)
    return jax.eval_shape(apply, jax.random.key(0), images)[1]


def tensors(model):
    """Name in PyTorch -> shape there."""
    flat = flax.traverse_util.flatten_dict(shapes(model), sep="/")
    found = [
        (names.torch_name(path.partition("/")[2], model.torch_names), names.to_torch(path, np.empty(leaf.shape)).shape)
        for path, leaf in flat.items()
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def normed(conv, norm, shape):
    """The tensors of a convolution and of the normalisation after it."""
    vectors = {f"{norm}.{leaf}": shape[:1] for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {f"{conv}.weight": shape, **vectors}


FC = {"fc.weight": (10, 256), "fc.bias": (10,)}
TIERED = {
    **normed("conv1.0", "conv1.1", (24, 3, 3, 3)),
    **normed("conv1.3", "conv1.4", (32, 24, 3, 3)),
    **normed("conv1.6", "bn1", (64, 32, 3, 3)),
}
# As timm 1.0.31 has them.
TENSORS = {
    "seresnext26t_32x4d": {
        **TIERED,
        **normed("layer1.0.conv1", "layer1.0.bn1", (128, 64, 1, 1)),
        **normed("layer1.0.conv2", "layer1.0.bn2", (128, 4, 3, 3)),
        **normed("layer1.0.conv3", "layer1.0.bn3", (256, 128, 1, 1)),
        "layer1.0.se.fc1.weight": (16, 256, 1, 1),
        "layer1.0.se.fc1.bias": (16,),
        "layer1.0.se.fc2.weight": (256, 16, 1, 1),
        "layer1.0.se.fc2.bias": (256,),
        **normed("layer1.0.downsample.1", "layer1.0.downsample.2", (256, 64, 1, 1)),
        **FC,
    },
    "ecaresnet26t": {
        **TIERED,
        **normed("layer1.0.conv1", "layer1.0.bn1", (64, 64, 1, 1)),
        **normed("layer1.0.conv2", "layer1.0.bn2", (64, 64, 3, 3)),
        **normed("layer1.0.conv3", "layer1.0.bn3", (256, 64, 1, 1)),
        "layer1.0.se.conv.weight": (1, 1, 5),
        **normed("layer1.0.downsample.1", "layer1.0.downsample.2", (256, 64, 1, 1)),
        **FC,
    },
    "wide_resnet50_2": {
        **normed("conv1", "bn1", (64, 3, 7, 7)),
        **normed("layer1.0.conv1", "layer1.0.bn1", (128, 64, 1, 1)),
        **normed("layer1.0.conv2", "layer1.0.bn2", (128, 128, 3, 3)),
        **normed("layer1.0.conv3", "layer1.0.bn3", (256, 128, 1, 1)),
        **normed("layer1.0.downsample.0", "layer1.0.downsample.1", (256, 64, 1, 1)),
        **FC,
    },
}


@pytest.mark.parametrize("name", TENSORS)
def test_the_tensors_are_those_of_timm(name):
    assert tensors(build(name)) == TENSORS[name]


def test_the_stems_are_those_of_timm():
    def convolutions(name):
        return {key: shape for key, shape in tensors(build(name)).items() if "layer1" not in key and len(shape) == 4}

    small, large, tiered = [(32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3)], [(64, 3, 3, 3), (64, 64, 3, 3)], TIERED
    deep = ["conv1.0.weight", "conv1.3.weight", "conv1.6.weight"]
    assert convolutions("resnet50") == {"conv1.weight": (64, 3, 7, 7)}
    assert convolutions("resnet50c") == convolutions("resnet50d") == dict(zip(deep, small, strict=True))
    assert convolutions("resnet50s") == dict(zip(deep, [*large, (128, 64, 3, 3)], strict=True))
    assert convolutions("resnet50t") == {key: tiered[key] for key in deep}
    assert convolutions("resnetrs50") == convolutions("resnet50d") | {"maxpool.0.weight": (64, 64, 3, 3)}


@pytest.mark.parametrize("name", ["resnet50", "resnet50c", "resnet50s", "resnet50t", "resnetrs50", "seresnet18"])
def test_an_imagenet_stem_divides_the_image_by_four_and_a_cifar_stem_keeps_it(name):
    for stem, size in (("imagenet", 8), ("cifar", 32)):
        found = shapes(build(name, stem=stem), capture_intermediates=True, mutable=True)["intermediates"]
        assert found["stem"]["__call__"][0].shape[1] == found["stage1_block1"]["__call__"][0].shape[1] == size
        assert found["__call__"][0].shape == (2, 10)


# As timm counts them.
@pytest.mark.parametrize(("name", "count"), [("resnet10t", 5_435_488), ("ecaresnet26t", 16_011_916)])
def test_parameter_count_is_that_of_timm(name, count):
    params = shapes(MODELS[name](num_classes=1000, compute=FLOAT32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_inputs_are_of_known_names_and_no_default():
    assert set(INPUTS) <= set(MODELS) and Input() not in INPUTS.values()
    assert INPUTS["resnet101d"] == Input(256, crop=0.95)


@pytest.mark.parametrize("size", [4, 5])
def test_a_pooled_shortcut_is_the_mean_of_each_window_and_a_projection(size):
    x = np.random.default_rng(0).random((2, size, size, 3), np.float32)
    block = BasicBlock(width=6, stride=2, drop_rate=0.0, compute=FLOAT32, pooled_shortcut=True)
    y, variables = jax.jit(partial(block.init_with_output, train=False))(jax.random.key(0), x)
    # A block starts as its shortcut. The running statistics are zero and one.
    padded = np.pad(x, ((0, 0), (0, size % 2), (0, size % 2), (0, 0)), constant_values=np.nan)
    windows = padded.reshape(2, (size + 1) // 2, 2, (size + 1) // 2, 2, 3)
    kernel = variables["params"]["pooled_shortcut_conv"]["kernel"][0, 0]
    expected = np.maximum(np.nanmean(windows, axis=(2, 4)) @ kernel / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)


def test_groups_of_channels_are_convolved_apart():
    block = BottleneckBlock(width=64, stride=1, drop_rate=0.0, compute=FLOAT32, cardinality=32, base_width=4)
    x = jnp.zeros((1, 3, 3, 256))
    found = jax.eval_shape(partial(block.init, train=False), jax.random.key(0), x)["params"]
    assert found["conv2"]["kernel"].shape == (3, 3, 4, 128)
    assert found["conv3"]["kernel"].shape == (1, 1, 128, 256)


def test_squeeze_and_excitation_scales_each_channel_by_its_means():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    y, variables = jax.jit(SqueezeExcite(width=5, compute=FLOAT32).init_with_output)(jax.random.key(0), x)
    first, second = (variables["params"][name]["kernel"][0, 0] for name in ("fc1", "fc2"))
    scales = 1 / (1 + np.exp(-np.maximum(x.mean(axis=(1, 2)) @ first, 0) @ second))
    np.testing.assert_allclose(y, x * scales[:, None, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "ratio", "width"), [(64, 1 / 16, 8), (256, 1 / 16, 16), (320, 1 / 16, 24)])
def test_the_hidden_width_of_squeeze_and_excitation_is_a_multiple_of_eight(channels, ratio, width):
    class Net(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            return squeeze_excite(x, ratio=ratio, compute=FLOAT32, name="se")

    found = jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((1, 2, 2, channels)))["params"]
    assert found["se"]["fc1"]["kernel"].shape == (1, 1, channels, width)


@pytest.mark.parametrize(("channels", "size"), [(2, 3), (64, 3), (256, 5), (512, 5), (2048, 7)])
def test_efficient_attention_scales_each_channel_by_the_means_of_its_neighbours(channels, size):
    x = np.random.default_rng(0).normal(size=(2, 2, 2, channels)).astype(np.float32)
    y, variables = jax.jit(EfficientAttention(compute=FLOAT32).init_with_output)(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["conv"]["kernel"])[:, 0, 0]
    assert kernel.shape == (size,)
    means = np.pad(x.mean(axis=(1, 2)), ((0, 0), (size // 2, size // 2)))
    mixed = sum(kernel[i] * means[:, i : i + channels] for i in range(size))
    np.testing.assert_allclose(y, x / (1 + np.exp(-mixed))[:, None, None], rtol=1e-4, atol=1e-5)
