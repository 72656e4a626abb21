"""Every model of the table: its contract, its size, and batch normalisation over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from models import MODELS, build
from models.layers import max_pool_2x2

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


def _model(name, *, num_classes=NUM_CLASSES, dtype=jnp.float32, axis_name=None, **kwargs):
    kwargs = ARGUMENTS.get(name, {}) | kwargs
    return build(name, num_classes=num_classes, dtype=dtype, axis_name=axis_name, **kwargs)


def _images(*, count=4, size=16):
    return jax.random.normal(jax.random.key(1), (count, size, size, 3), jnp.float32)


def _init(model, images):
    return model.init(jax.random.key(0), images, train=False)


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


@pytest.mark.parametrize("name", sorted(MODELS))
def test_training_moves_the_statistics_and_evaluation_treats_each_image_alone(name):
    model, images = _model(name), _images()

    @jax.jit
    def both_modes(images):
        variables = _init(model, images)
        apply = partial(model.apply, variables, mutable=["batch_stats"])
        logits, after_train = apply(images, train=True, rngs={"dropout": jax.random.key(2)})
        alone, after_eval = apply(images[:1], train=False)
        together, _ = apply(images, train=False)
        return variables["batch_stats"], after_train["batch_stats"], after_eval["batch_stats"], logits, alone, together

    before, after_train, after_eval, logits, alone, together = both_modes(images)
    assert np.all(np.isfinite(logits))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after_train), strict=True):
        assert not np.array_equal(old, new)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after_eval), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_allclose(alone, together[:1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_count_is_the_published_one(name):
    imagenet = name in ("resnet18", "resnet34", "resnet50")
    model = _model(name, num_classes=1000, stem="imagenet") if imagenet else _model(name, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]
    assert _count(params) == PARAMETERS[name]
    if name in ROUNDED:
        assert _count(params) / 1e6 == pytest.approx(ROUNDED[name], rel=0.02)


def test_a_zero_initialised_block_starts_as_the_identity():
    model, images = _model("resnet18"), _images(count=2, size=8)
    _, found = model.apply(_init(model, images), images, train=False, capture_intermediates=True)
    found = found["intermediates"]
    np.testing.assert_array_equal(found["stage1_block1"]["__call__"][0], found["stem"]["__call__"][0])


def test_a_plain_shortcut_drops_pixels_and_adds_zero_channels():
    model, images = _model("resnet20"), _images(count=2, size=8)
    variables = _init(model, images)
    # With its last scale and bias at zero a block is its shortcut.
    block = variables["params"]["stage2_block1"]
    block["norm2"] = jax.tree.map(jnp.zeros_like, block["norm2"])
    _, found = model.apply(variables, images, train=False, capture_intermediates=True)
    found = found["intermediates"]
    before, after = found["stage1_block3"]["__call__"][0], found["stage2_block1"]["__call__"][0]
    np.testing.assert_array_equal(after[..., :16], before[:, ::2, ::2])
    np.testing.assert_array_equal(after[..., 16:], 0.0)


@pytest.mark.parametrize("name", ["cnn", "resnet20", "speednet"])
def test_synchronised_statistics_equal_those_of_one_device(name):
    devices = np.array(jax.devices())
    assert len(devices) > 1, "tests/conftest.py sets several CPU devices"
    kwargs = dict(dropout=0.0) if name == "cnn" else {}
    images = _images(count=4 * len(devices), size=12)
    one, synced = _model(name, **kwargs), _model(name, axis_name="batch", **kwargs)
    variables = jax.jit(partial(_init, one))(images)

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
    variables = _init(model, images)

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
        _init(_model("cnn", widths=(2,) * 5), _images(size=8))


def test_unknown_names_list_the_known_and_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'resnet18'.*speednet"):
        _model("resnet81")
    with pytest.raises(ValueError, match="unknown stem 'cifra'; did you mean 'cifar'.*imagenet"):
        _model("resnet18", stem="cifra")


def test_a_misspelt_argument_is_an_error():
    with pytest.raises(TypeError, match="drop_out"):
        _model("cnn", drop_out=0.1)
