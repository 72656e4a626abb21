"""RegNet: its widths, tensors, shapes and dropped blocks."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models import MODELS, names, regnet
from linseed.models.layers import Compute

FLOAT32 = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)


def build(name, **kwargs):
    return MODELS[name](num_classes=10, compute=FLOAT32, **kwargs)


def small(**kwargs):
    """Two blocks with groups of two channels."""
    block = partial(regnet.RegNetBlock, group_width=2, se_ratio=0.25)
    return regnet.RegNet(
        block=block, stage_sizes=(1, 1), widths=(4, 8), num_classes=3, compute=FLOAT32, stem="cifar", **kwargs
    )


def shapes(model, size=32, **kwargs):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    apply = partial(model.init_with_output, train=False, **kwargs)
    return jax.eval_shape(apply, jax.random.key(0), images)[1]


# Of the first block of each stage; as published with the networks.
@pytest.mark.parametrize(
    ("name", "sizes", "widths"),
    [
        ("regnetx_002", (1, 1, 4, 7), (24, 56, 152, 368)),
        ("regnety_016", (2, 6, 17, 2), (48, 120, 336, 888)),
        ("regnety_080", (2, 4, 10, 1), (168, 448, 896, 2016)),
    ],
)
def test_blocks_and_widths_are_the_published_ones(name, sizes, widths):
    assert (build(name).stage_sizes, build(name).widths) == (sizes, widths)


def test_widths_are_multiples_of_eight_and_of_the_group():
    for depth, initial, slope, factor, group in [*regnet._X.values(), *regnet._Y.values()]:
        sizes, widths = regnet.stages(depth=depth, initial=initial, slope=slope, factor=factor, group_width=group)
        assert sum(sizes) == depth and list(widths) == sorted(widths)
        assert all(width % min(group, width) == 0 for width in widths)


# As timm counts them.
@pytest.mark.parametrize(("name", "count"), [("regnetx_002", 2_684_792), ("regnety_002", 3_162_996)])
def test_parameter_count_is_that_of_timm(name, count):
    params = shapes(MODELS[name](num_classes=1000, compute=FLOAT32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def normed(layer, shape):
    vectors = {f"{layer}.bn.{leaf}": shape[:1] for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {f"{layer}.conv.weight": shape, **vectors}


def test_the_tensors_are_those_of_timm():
    model = build("regnety_002").clone(stage_sizes=(2,), widths=(24,))
    flat = flax.traverse_util.flatten_dict(shapes(model), sep="/")
    found = {
        names.torch_name(path.partition("/")[2], model.torch_names): names.to_torch(path, np.empty(leaf.shape)).shape
        for path, leaf in flat.items()
    }
    assert len(found) == len(flat)
    expected = {**normed("stem", (32, 3, 3, 3)), "head.fc.weight": (10, 24), "head.fc.bias": (10,)}
    for block, inputs, hidden in (("s1.b1", 32, 8), ("s1.b2", 24, 6)):
        expected |= normed(f"{block}.conv1", (24, inputs, 1, 1))
        expected |= normed(f"{block}.conv2", (24, 8, 3, 3)) | normed(f"{block}.conv3", (24, 24, 1, 1))
        expected |= {f"{block}.se.fc1.weight": (hidden, 24, 1, 1), f"{block}.se.fc1.bias": (hidden,)}
        expected |= {f"{block}.se.fc2.weight": (24, hidden, 1, 1), f"{block}.se.fc2.bias": (24,)}
    assert found == expected | normed("s1.b1.downsample", (24, 32, 1, 1))


@pytest.mark.parametrize(("stem", "sizes"), [("imagenet", [16, 8, 4, 2]), ("cifar", [32, 16, 8, 4])])
def test_each_stage_halves_the_map(stem, sizes):
    model = build("regnetx_002", stem=stem).clone(stage_sizes=(1, 1, 1, 1))
    found = shapes(model, size=64, capture_intermediates=True, mutable=True)["intermediates"]
    assert [found[f"stage{i}_block1"]["__call__"][0].shape[1] for i in (1, 2, 3, 4)] == sizes


def test_a_block_starts_as_its_shortcut():
    x = flax.linen.relu(jax.random.normal(jax.random.key(0), (2, 3, 3, 8)))
    block = regnet.RegNetBlock(width=8, stride=1, drop_rate=0.0, compute=FLOAT32, group_width=2, se_ratio=0.25)
    y, _ = jax.jit(partial(block.init_with_output, train=False))(jax.random.key(1), x)
    np.testing.assert_array_equal(y, x)


def test_blocks_are_dropped_in_training_only_and_later_ones_more_often():
    rates = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, regnet.RegNetBlock):
            rates.append(context.module.drop_rate)
        return call(*args, **kwargs)

    model, images = small(drop_path=0.4), jnp.zeros((2, 8, 8, 3))
    with flax.linen.intercept_methods(spy):
        variables = shapes(model)
    np.testing.assert_allclose(rates, [0.2, 0.4])
    jax.eval_shape(partial(model.apply, train=False), variables, images)
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(partial(model.apply, train=True, mutable=["batch_stats"]), variables, images)
