"""ConvNeXt: sizes, names of tensors as timm has them, stems, and what is random in training."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models import convnext, names
from linseed.models.layers import Compute

FLOAT32 = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)
SMALL = dict(depths=(1, 2), widths=(4, 8))

# Parameters with 1000 classes, as timm counts them.
PARAMETERS = {
    "convnext_atto_ols": 3_702_912,
    "convnext_tiny": 28_589_128,
    "convnext_large_mlp": 200_128_168,
    "convnextv2_atto": 3_708_400,
    "convnextv2_huge": 660_289_640,
}

# timm's names of the tensors of a network with one block in its first stage and two in its second.
_BLOCKS = ["stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1"]
_LAYERS = ["conv_dw", "norm", "mlp.fc1", "mlp.fc2"]
_BOTH = ["stages.1.downsample.0", "stages.1.downsample.1", "head.norm", "head.fc"]
_BOTH += [f"{block}.{layer}" for block in _BLOCKS for layer in _LAYERS]
_GAMMAS = [f"{block}.gamma" for block in _BLOCKS]
TENSORS = {
    "convnext_tiny": (["stem.0", "stem.1", *_BOTH], _GAMMAS),
    "convnext_atto_ols": (["stem.0", "stem.1", "stem.2", *_BOTH], _GAMMAS),
    "convnext_large_mlp": (["stem.0", "stem.1", "head.pre_logits.fc", *_BOTH], _GAMMAS),
    "convnextv2_atto": (["stem.0", "stem.1", *_BOTH, *(f"{block}.mlp.grn" for block in _BLOCKS)], []),
}


def _model(name, **kwargs):
    return convnext.NAMES[name](num_classes=5, compute=FLOAT32, **kwargs)


def _small(name, **kwargs):
    return _model(name, **kwargs).clone(**SMALL)


def _images(size=16, count=2):
    return jax.random.normal(jax.random.key(0), (count, size, size, 3))


def _shapes(model, size=32):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]


def _random_variables(model, images):
    """Every parameter random, so that none hides what it does."""
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes)


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_parameters_that_timm_counts(name):
    model = convnext.NAMES[name](num_classes=1000, compute=FLOAT32)
    assert sum(leaf.size for leaf in jax.tree.leaves(_shapes(model))) == PARAMETERS[name]


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_have_the_names_of_timm(name):
    layers, alone = TENSORS[name]
    paths = flax.traverse_util.flatten_dict(_shapes(_small(name)), sep="/")
    found = sorted(names.torch_name(path, convnext.ConvNeXt.torch_names) for path in paths)
    assert found == sorted([f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")] + alone)


@pytest.mark.parametrize(("name", "rank"), [("convnext_nano", 4), ("convnext_tiny", 2)])
def test_hidden_layers_are_convolutions_in_the_small_sizes(name, rank):
    assert _shapes(_model(name))["stage1_block1"]["fc1"]["kernel"].ndim == rank


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_atto_ols"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_stem_divides_the_image_by_its_stride(name, stride):
    model, images = _small(name, stem_stride=stride), jax.ShapeDtypeStruct((2, 16, 24, 3), jnp.float32)
    apply = partial(model.init_with_output, train=False, capture_intermediates=True, mutable=True)
    logits, variables = jax.eval_shape(apply, jax.random.key(0), images)
    outputs = variables["intermediates"]
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    assert outputs["stem"]["__call__"][0].shape == (2, 16 // stride, 24 // stride, 4)
    assert outputs["stage2_block2"]["__call__"][0].shape == (2, 16 // stride // 2, 24 // stride // 2, 8)


def test_images_too_small_name_the_cure():
    _shapes(_model("convnext_atto"), size=32)
    with pytest.raises(ValueError, match="images of 31x31 are too small for stem_stride=4: set stem_stride=1 or use"):
        _shapes(_model("convnext_atto"), size=31)
    _shapes(_model("convnext_atto", stem_stride=1), size=8)


def test_response_normalisation_is_its_formula_and_has_a_gradient_where_a_channel_is_zero():
    x = np.array(_images(size=3, count=2), np.float64)
    x[0, :, :, 1] = 0.0
    scale, bias = np.array([0.5, -1.0, 2.0]), np.array([0.1, 0.2, 0.3])
    norms = np.sqrt((x**2).sum(axis=(1, 2), keepdims=True))
    expected = x + scale * x * norms / norms.mean(axis=-1, keepdims=True) + bias
    params = {"scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}
    found, vjp = jax.vjp(partial(convnext.GlobalResponseNorm().apply, {"params": params}), x.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.all(np.isfinite(vjp(found)[0]))


@pytest.mark.parametrize("name", ["convnext_tiny", "convnextv2_atto"])
def test_a_bfloat16_network_is_the_float32_one_but_for_rounding(name):
    images = _images()
    exact, rounded = (_small(name).clone(compute=FLOAT32._replace(dtype=d)) for d in (jnp.float32, jnp.bfloat16))
    variables = _random_variables(rounded, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    outputs = [jax.jit(partial(model.apply, train=False))(variables, images) for model in (exact, rounded)]
    assert outputs[0].dtype == outputs[1].dtype == jnp.float32
    error = np.linalg.norm(outputs[0] - outputs[1]) / np.linalg.norm(outputs[0])
    assert 0.0 < error < 0.05


@pytest.mark.parametrize("rate", ["drop_path", "dropout"])
def test_rates_act_in_training_alone(rate):
    model, images = _small("convnextv2_atto", **{rate: 0.5}), _images(count=8)
    variables = _random_variables(model, images)
    apply = jax.jit(model.apply, static_argnames="train")
    drawn = [apply(variables, images, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    without = jax.jit(partial(model.clone(**{rate: 0.0}).apply, train=True))(variables, images)
    np.testing.assert_allclose(apply(variables, images, train=False), without, rtol=1e-4, atol=1e-3)
