"""Every model of the table: its contract, its size, and batch normalisation over devices."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from models import MODELS, build
from models.layers import max_pool_2x2
from models.resnet import STEMS, BasicBlock, BottleneckBlock, PlainShortcutBlock

NUM_CLASSES = 7

# The arguments of those models that take any.
ARGUMENTS = {
    "cnn": dict(widths=(4, 6), dropout=0.5),
    "resnet18": dict(stem="cifar"),
    "resnet34": dict(stem="cifar"),
    "resnet50": dict(stem="imagenet"),
    "speednet": dict(stem_width=4, widths=(4, 6, 8), logit_scale=0.1),
}

# Parameters as published: exact from the layer shapes in He et al. 2015, rounded in its tables 1 and 6.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
}
ROUNDED = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}
# The same blocks as resnet18 and resnet20, only more: their shapes and sizes are checked, and they are not run.
DEEPER_TWINS = {"resnet32", "resnet34", "resnet44", "resnet56", "resnet110"}
RUN = sorted(set(MODELS) - DEEPER_TWINS)


def _model(name, *, num_classes=NUM_CLASSES, dtype=jnp.float32, axis_name=None, **kwargs):
    kwargs = ARGUMENTS.get(name, {}) | kwargs
    return build(name, num_classes=num_classes, dtype=dtype, axis_name=axis_name, **kwargs)


def _images(*, count=4, size=12):
    return jax.random.normal(jax.random.key(1), (count, size, size, 3), jnp.float32)


def _any_variables(model, images):
    """Variables of the right shapes, without compiling the initialisation.

    Kernels are random and all vectors are ones, under which normalisation by running statistics is near the identity.
    """
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)

    def fill(shape):
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

    return jax.tree.map(lambda leaf: fill(leaf.shape), shapes)


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_logits_and_variables_are_float32_in_any_compute_dtype(name, dtype):
    model = _model(name, dtype=dtype)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    logits = jax.eval_shape(partial(model.apply, train=False), variables, images)
    assert logits.shape == (4, NUM_CLASSES)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert set(variables) == {"params", "batch_stats"}


@pytest.mark.parametrize("name", RUN)
def test_training_moves_the_statistics_alike_on_every_device(name):
    model, images = _model(name, axis_name="batch"), _images()
    variables = _any_variables(model, images)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0), axis_name="batch")
    def train(variables, images):
        rngs = {"dropout": jax.random.key(2)}
        return model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])

    logits, updates = train(variables, images.reshape(2, 2, *images.shape[1:]))
    assert np.all(np.isfinite(logits))
    old, new = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updates["batch_stats"])
    for before, (first, second) in zip(old, new, strict=True):
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(before, first)


@pytest.mark.parametrize("name", RUN)
def test_evaluation_sees_each_image_alone_and_keeps_the_statistics(name):
    model, images = _model(name, axis_name="batch"), _images()
    variables = _any_variables(model, images)
    evaluate = jax.jit(partial(model.apply, train=False, mutable=["batch_stats"]))
    logits, updates = evaluate(variables, images)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    other_company, _ = evaluate(variables, images.at[1:].multiply(3.0))
    np.testing.assert_array_equal(logits[0], other_company[0])
    assert not np.array_equal(logits[1:], other_company[1:])


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_count_is_the_published_one(name):
    imagenet = name in ("resnet18", "resnet34", "resnet50")
    model = _model(name, num_classes=1000, stem="imagenet") if imagenet else _model(name, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]
    assert _count(params) == PARAMETERS[name]
    if name in ROUNDED:
        assert _count(params) / 1e6 == pytest.approx(ROUNDED[name], rel=0.02)


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_a_residual_block_starts_as_the_identity(block):
    x = nn.relu(jax.random.normal(jax.random.key(0), (2, 6, 6, 8)))
    width = 8 if block is BasicBlock else 2
    y, _ = block(width, 1, jnp.float32, None).init_with_output(jax.random.key(1), x, train=False)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("size", [6, 7])
def test_a_plain_shortcut_drops_pixels_and_adds_zero_channels(size):
    x = nn.relu(jax.random.normal(jax.random.key(0), (2, size, size, 4)))
    block = PlainShortcutBlock(6, 2, jnp.float32, None)
    variables = _any_variables(block, x)
    # With its last scale and bias at zero a block is its shortcut.
    variables["params"]["norm2"] = jax.tree.map(np.zeros_like, variables["params"]["norm2"])
    variables["batch_stats"]["norm2"]["mean"] *= 0.0
    y = block.apply(variables, x, train=False)
    np.testing.assert_array_equal(y[..., :4], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 4:], 0.0)


@pytest.mark.parametrize("stem", sorted(STEMS))
def test_strides_come_from_the_stem_and_the_first_block_of_each_later_stage(stem):
    model, images = _model("resnet18", stem=stem), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    apply = partial(model.init_with_output, train=False, capture_intermediates=True, mutable=True)
    _, variables = jax.eval_shape(apply, jax.random.key(0), images)
    sizes = [
        variables["intermediates"][name]["__call__"][0].shape[1]
        for name in ("stem", "stage1_block2", "stage2_block1", "stage3_block1", "stage4_block2")
    ]
    assert sizes == {"cifar": [64, 64, 32, 16, 8], "imagenet": [16, 16, 8, 4, 2]}[stem]


@pytest.mark.parametrize("name", ["cnn", "speednet"])
def test_a_step_on_four_devices_equals_one_device_on_the_whole_batch(name):
    devices = np.array(jax.devices())
    assert len(devices) > 1, "tests/conftest.py sets several CPU devices"
    kwargs = dict(dropout=0.0) if name == "cnn" else {}
    images = _images(count=4 * len(devices))
    one, synced = _model(name, **kwargs), _model(name, axis_name="batch", **kwargs)
    variables = _any_variables(one, images)

    def train(model, images):
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, updates["batch_stats"]

    split = jax.shard_map(
        partial(train, synced),
        mesh=Mesh(devices, ("batch",)),
        in_specs=PartitionSpec("batch"),
        out_specs=(PartitionSpec("batch"), PartitionSpec()),
        check_vma=False,
    )
    expected, got = jax.jit(partial(train, one))(images), jax.jit(split)(images)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), got, expected)


def test_dropout_draws_in_training_only():
    model, images = _model("cnn"), _images()
    variables = _any_variables(model, images)

    def logits(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    assert np.array_equal(logits(0), logits(0))
    assert not np.array_equal(logits(0), logits(1))


def test_a_list_of_widths_is_as_good_as_a_tuple():
    assert _model("cnn", widths=[4, 6]) == _model("cnn", widths=(4, 6))
    assert _model("speednet", widths=[4, 6]) == _model("speednet", widths=(4, 6))


@pytest.mark.parametrize("size", [6, 7])
def test_max_pooling_is_the_maximum_of_each_2x2_window(size):
    x = np.asarray(_images(count=2, size=size))
    half = size // 2
    windows = x[:, : 2 * half, : 2 * half].reshape(2, half, 2, half, 2, 3)
    np.testing.assert_array_equal(max_pool_2x2(jnp.asarray(x)), windows.max(axis=(2, 4)))


def test_too_many_widths_for_the_image_say_so():
    with pytest.raises(ValueError, match="fewer widths or larger images"):
        _any_variables(_model("cnn", widths=(2,) * 5), _images(size=8))


def test_unknown_names_list_the_known_and_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'resnet18'.*speednet"):
        _model("resnet81")
    with pytest.raises(ValueError, match="unknown stem 'cifra'; did you mean 'cifar'.*imagenet"):
        _model("resnet18", stem="cifra")


def test_a_misspelt_argument_is_an_error():
    with pytest.raises(TypeError, match="drop_out"):
        _model("cnn", drop_out=0.1)
