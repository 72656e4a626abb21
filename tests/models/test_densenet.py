"""DenseNet: sizes, names of tensors as timm has them, stems, and what is random in training."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models import densenet, names
from linseed.models.layers import Compute

FLOAT32 = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)
SMALL = dict(stage_sizes=(1, 2), growth_rate=4)

# Parameters with 1000 classes, as timm counts them.
PARAMETERS = {"densenet121": 7_978_856, "densenetblur121d": 7_998_088}

# timm's names of the layers of a network with one dense layer in its first stage and two in its second.
CONVS = ["conv0", "transition1.conv"]
NORMS = ["norm0", "transition1.norm", "norm5"]
for _layer in ("denseblock1.denselayer1", "denseblock2.denselayer1", "denseblock2.denselayer2"):
    CONVS += [f"{_layer}.conv{i}" for i in (1, 2)]
    NORMS += [f"{_layer}.norm{i}" for i in (1, 2)]
DEEP_CONVS, DEEP_NORMS = ["conv1", "conv2"], ["norm1", "norm2"]


def _small(name, **kwargs):
    return densenet.NAMES[name](num_classes=5, compute=FLOAT32, **kwargs).clone(**SMALL)


def _shapes(model, size=32):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


def _random_variables(model, images):
    """Every parameter random, so that none hides what it does."""
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.abs(rng.standard_normal(leaf.shape)).astype(leaf.dtype), shapes)


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_parameters_that_timm_counts(name):
    model = densenet.NAMES[name](num_classes=1000, compute=FLOAT32)
    assert sum(leaf.size for leaf in jax.tree.leaves(_shapes(model)["params"])) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["densenet121", "densenet264d", "densenetblur121d"])
def test_tensors_have_the_names_of_timm(name):
    deep = name.endswith("d")
    convs, norms = CONVS + deep * DEEP_CONVS, NORMS + deep * DEEP_NORMS
    paths = flax.traverse_util.flatten_dict(_shapes(_small(name)), sep="/")
    found = [names.torch_name(path.partition("/")[2], densenet.DenseNet.torch_names) for path in paths]
    expected = [f"features.{conv}.weight" for conv in convs] + ["classifier.weight", "classifier.bias"]
    leaves = ("weight", "bias", "running_mean", "running_var")
    assert sorted(found) == sorted(expected + [f"features.{norm}.{leaf}" for norm in norms for leaf in leaves])


@pytest.mark.parametrize(("stem", "size"), [("cifar", 20), ("deep", 5), ("deep_blur", 5), ("imagenet", 5)])
def test_every_stem_gives_maps_of_its_size_and_layers_append_features(stem, size):
    images = jax.ShapeDtypeStruct((1, 20, 20, 3), jnp.float32)
    model = _small("densenet121", stem=stem)
    apply = partial(model.init_with_output, train=False, capture_intermediates=True, mutable=True)
    outputs = jax.eval_shape(apply, jax.random.key(0), images)[1]["intermediates"]
    shapes = {name: outputs[name]["__call__"][0].shape[1:] for name in outputs if name[:4] in ("stem", "stag")}
    half = size // 2
    assert shapes == {
        "stem": (size, size, 8),
        "stage1_block1": (size, size, 12),
        "stage2_transition": (half, half, 6),
        "stage2_block1": (half, half, 10),
        "stage2_block2": (half, half, 14),
    }


def test_a_dense_layer_hands_on_its_input():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    layer = densenet.DenseLayer(growth_rate=2, dropout=0.0, compute=FLOAT32)
    y, _ = jax.jit(partial(layer.init_with_output, train=False))(jax.random.key(1), x)
    np.testing.assert_array_equal(y[..., :3], x)


def test_a_blurred_pooling_is_a_maximum_and_a_mirrored_blur():
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 5, 6, 1)))
    around = np.pad(x[0, :, :, 0], 1, constant_values=-np.inf)
    largest = np.array([[around[i : i + 3, j : j + 3].max() for j in range(6)] for i in range(5)])
    largest = np.pad(largest, 1, mode="reflect")
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = [[(weights * largest[i : i + 3, j : j + 3]).sum() for j in (0, 2, 4)] for i in (0, 2, 4)]
    np.testing.assert_allclose(densenet.blurred_max_pool(x)[0, :, :, 0], expected, rtol=1e-5)


def test_images_too_small_name_the_cure():
    model = densenet.NAMES["densenet121"](num_classes=5, compute=FLOAT32)
    with pytest.raises(ValueError, match="images of 28x28 are too small: set stem='cifar' or use larger images"):
        _shapes(model, size=28)
    _shapes(model.clone(stem="cifar"), size=8)


def test_a_bfloat16_network_is_the_float32_one_but_for_rounding():
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    model = _small("densenet121", stem="cifar")
    exact, rounded = (model.clone(compute=FLOAT32._replace(dtype=dtype)) for dtype in (jnp.float32, jnp.bfloat16))
    variables = _random_variables(rounded, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    outputs = [jax.jit(partial(model.apply, train=False))(variables, images) for model in (exact, rounded)]
    assert outputs[0].dtype == outputs[1].dtype == jnp.float32
    assert 0.0 < np.linalg.norm(outputs[0] - outputs[1]) / np.linalg.norm(outputs[0]) < 0.05


@pytest.mark.parametrize("rate", ["layer_dropout", "dropout"])
def test_rates_act_in_training_alone(rate):
    model = _small("densenet121", stem="cifar", **{rate: 0.5})
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    variables = _random_variables(model, images)
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    drawn = [apply(variables, images, rngs={"dropout": jax.random.key(seed)})[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    jax.eval_shape(partial(model.apply, train=False), variables, images)
    without = model.clone(**{rate: 0.0})
    jax.eval_shape(partial(without.apply, train=True, mutable=["batch_stats"]), variables, images)
