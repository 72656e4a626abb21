"""Activations, initialisers and normalisations against their formulas, and the block that joins them."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models.layers import (
    ACTIVATIONS,
    INITIALIZERS,
    NORMALIZATIONS,
    RUNNING_VARIANCES,
    Activation,
    Block,
    Compute,
    initializer,
)
from linseed.models.pooling import global_max_pool, maximum

FLOAT32 = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)

phi = np.vectorize(lambda x: (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0)

# x: float64 [N, pieces * F].
FORMULAS = {
    "elu": lambda x: np.where(x >= 0, x, np.exp(x) - 1.0),
    "gelu": lambda x: x * phi(x),
    "leaky_relu": lambda x: np.maximum(0.1 * x, x),
    "maxout": lambda x: np.maximum(x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
    "prelu": lambda x: np.maximum(0.25 * x, x),
    "relu": lambda x: np.maximum(0.0, x),
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "tanh": lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)),
}

VARIANCES = {
    "kaiming_normal": lambda fan_in, fan_out: 2.0 / fan_in,
    "kaiming_normal_fan_out": lambda fan_in, fan_out: 2.0 / fan_out,
    "kaiming_uniform": lambda fan_in, fan_out: 2.0 / fan_in,
    "kaiming_uniform_fan_out": lambda fan_in, fan_out: 2.0 / fan_out,
    "lecun_normal": lambda fan_in, fan_out: 1.0 / fan_in,
    "unit_uniform": lambda fan_in, fan_out: 1.0,
    "xavier_normal": lambda fan_in, fan_out: 2.0 / (fan_in + fan_out),
    "xavier_uniform": lambda fan_in, fan_out: 2.0 / (fan_in + fan_out),
}

FITS = {
    "elu": "kaiming_normal",
    "gelu": "kaiming_normal",
    "leaky_relu": "kaiming_normal",
    "maxout": "lecun_normal",
    "prelu": "kaiming_normal",
    "relu": "kaiming_normal",
    "sigmoid": "xavier_uniform",
    "silu": "kaiming_normal",
    "tanh": "xavier_uniform",
}


class Activate(nn.Module):
    """An entry of ACTIVATIONS by itself."""

    activation: str

    @nn.compact
    def __call__(self, x):
        return ACTIVATIONS[self.activation].build("activation")(x)


class Normalize(nn.Module):
    """An entry of NORMALIZATIONS by itself."""

    normalization: str
    compute: Compute = FLOAT32

    @nn.compact
    def __call__(self, x, *, train):
        return NORMALIZATIONS[self.normalization](x, train=train, compute=self.compute, name="norm")


def _block(activation, normalization, /, *, width, kernel_init="auto", weights=nn.Dense):
    return Block(
        weights=partial(weights, name="weights"),
        width=width,
        activation=activation,
        kernel_init=kernel_init,
        normalization=normalization,
        compute=FLOAT32,
    )


def test_every_entry_has_its_formula_here():
    assert set(FORMULAS) == set(FITS) == set(ACTIVATIONS)
    assert set(VARIANCES) | {"dirac", "orthogonal"} == set(INITIALIZERS)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_is_its_formula(name):
    x = np.linspace(-6.0, 6.0, 96).reshape(8, 12)[::-1].T
    y, _ = Activate(name).init_with_output(jax.random.key(0), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, FORMULAS[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_keeps_the_dtype_and_gives_one_feature_for_its_pieces(name, dtype):
    x = jax.ShapeDtypeStruct((2, 3, 3, 4 * ACTIVATIONS[name].pieces), dtype)
    y, variables = jax.eval_shape(Activate(name).init_with_output, jax.random.key(0), x)
    assert (y.shape, y.dtype) == ((2, 3, 3, 4), dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} <= {jnp.dtype("float32")}


def test_the_slope_of_prelu_is_learned_from_what_is_below_zero():
    x = jnp.array([[-3.0, -1.0, 2.0]])
    variables = Activate("prelu").init(jax.random.key(0), x)
    assert jax.tree.map(float, variables) == {"params": {"activation": {"negative_slope": 0.25}}}
    grads = jax.grad(lambda variables: jnp.sum(Activate("prelu").apply(variables, x)))(variables)
    assert float(grads["params"]["activation"]["negative_slope"]) == -4.0


@pytest.mark.parametrize("shape", [(150, 250), (3, 3, 40, 60)], ids=["dense", "conv"])
@pytest.mark.parametrize("name", sorted(VARIANCES))
def test_an_initialiser_has_its_mean_its_variance_and_its_bounds(name, shape):
    window = math.prod(shape[:-2])
    variance = VARIANCES[name](window * shape[-2], window * shape[-1])
    w = np.asarray(INITIALIZERS[name](jax.random.key(0), shape, jnp.float32), np.float64)
    assert abs(w.mean()) < 4.0 * math.sqrt(variance / w.size)
    # The variance of n draws has relative standard error sqrt((kurtosis - 1) / n), and neither kurtosis is over 3.
    assert w.var() == pytest.approx(variance, rel=4.0 * math.sqrt(2.0 / w.size))
    # A normal that is cut off at two standard deviations has 0.8796 of its standard deviation left.
    bound = math.sqrt(3.0 * variance) if "uniform" in name else 2.0 * math.sqrt(variance) / 0.8796
    assert 0.99 * bound < np.abs(w).max() <= 1.0001 * bound


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (3, 3, 4, 10), (1, 1, 4, 10)])
def test_orthogonal_kernels_have_orthonormal_columns_or_rows(shape):
    w = np.asarray(INITIALIZERS["orthogonal"](jax.random.key(0), shape, jnp.float32)).reshape(-1, shape[-1])
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 3, 4, 10), (3, 3, 4, 4), (5, 3, 6, 4), (8, 20)])
def test_dirac_kernels_hand_their_inputs_on_and_draw_the_other_outputs(shape):
    w = INITIALIZERS["dirac"](jax.random.key(0), shape, jnp.float32)
    *window, inputs, outputs = shape
    x = np.random.default_rng(0).standard_normal((2, *(6 for _ in window), inputs), np.float32)
    if window:
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dimensions, precision="highest")
    else:
        y = x @ w
    kept = min(inputs, outputs)
    np.testing.assert_allclose(y[..., :kept], x[..., :kept], atol=1e-5)
    bound = (math.prod(window) * inputs) ** -0.5  # PyTorch's default
    rest = np.abs(w[..., kept:])
    assert not rest.size or 0.9 * bound < rest.max() <= bound


@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_an_initialiser_draws_by_its_key_alone(name):
    first, again, other = (INITIALIZERS[name](jax.random.key(seed), (4, 8), jnp.float32) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first[:, 4 if name == "dirac" else 0 :] == other[:, 4 if name == "dirac" else 0 :])


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_auto_fits_the_activation_and_any_other_name_is_itself(activation):
    assert initializer("auto", activation=activation) is INITIALIZERS[FITS[activation]]
    for name in INITIALIZERS:
        assert initializer(name, activation=activation) is INITIALIZERS[name]


def _last_over_first(activation, *, init, scale, depth=20, width=256):
    """Second moment after `depth` layers of what comes before the activation, over that of the input."""
    pieces = ACTIVATIONS[activation].pieces
    rng = np.random.default_rng(0)
    first = z = scale * rng.standard_normal((64, pieces * width))
    for i in range(depth):
        draw = initializer(init, activation=activation)
        z = FORMULAS[activation](z) @ np.asarray(draw(jax.random.key(i), (width, pieces * width), jnp.float32))
    return np.mean(z**2) / np.mean(first**2)


@pytest.mark.parametrize("activation", ["leaky_relu", "maxout", "prelu", "relu"])
def test_auto_hands_the_signal_on_through_twenty_layers(activation):
    # prelu gains a sixteenth a layer, 3.4 in all.
    assert 0.25 < _last_over_first(activation, init="auto", scale=1.0) < 8.0


def test_xavier_suits_tanh_and_halves_the_signal_of_relu_in_every_layer():
    assert 0.5 < _last_over_first("tanh", init="auto", scale=0.01) < 2.0
    assert _last_over_first("relu", init="xavier_normal", scale=1.0) < 4.0 * 0.5**20


def _normalized(x, *, axes, scale, bias):
    mean = x.mean(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(x.var(axis=axes, keepdims=True) + 1e-5) * scale + bias


def _grouped(x, *, size, scale, bias):
    groups = x.reshape(*x.shape[:-1], -1, size)
    axes = (*range(1, x.ndim - 1), groups.ndim - 1)
    return _normalized(groups, axes=axes, scale=1.0, bias=0.0).reshape(x.shape) * scale + bias


@pytest.mark.parametrize("shape", [(4, 5, 6, 32), (4, 48), (4, 5, 6, 8)])
@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_a_normalisation_is_its_formula(name, shape):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 2.0, shape[-1]) * rng.standard_normal(shape) + rng.standard_normal(shape[-1])
    expected = {
        "batch": partial(_normalized, x, axes=tuple(range(len(shape) - 1))),
        "layer": partial(_normalized, x, axes=tuple(range(1, len(shape)))),
        "group": partial(_grouped, x, size=min(16, shape[-1])),
        "none": lambda **_: x,
    }[name]
    scale, bias = rng.standard_normal((2, shape[-1]))
    norm, images = Normalize(name), jnp.asarray(x, jnp.float32)
    variables = jax.eval_shape(partial(norm.init, train=False), jax.random.key(0), images)
    assert set(variables) == {"batch": {"batch_stats", "params"}, "none": set()}.get(name, {"params"})
    if name != "none":
        assert jax.tree.map(np.shape, variables["params"]["norm"]) == {"scale": scale.shape, "bias": bias.shape}
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    variables = {**variables, "params": {"norm": {"scale": scale, "bias": bias}}}
    y, _ = jax.jit(partial(norm.apply, train=True, mutable=["batch_stats"]))(variables, images)
    np.testing.assert_allclose(y, expected(scale=scale, bias=bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(NORMALIZATIONS) - {"none"}))
def test_a_normalisation_gives_the_compute_dtype_and_keeps_float32_parameters(name):
    x = jax.ShapeDtypeStruct((2, 3, 3, 4), jnp.bfloat16)
    init = partial(Normalize(name, FLOAT32._replace(dtype=jnp.bfloat16)).init_with_output, train=False)
    y, variables = jax.eval_shape(init, jax.random.key(0), x)
    assert (y.shape, y.dtype) == (x.shape, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_batch_normalisation_remembers_nine_tenths_of_its_statistics():
    x = jnp.array([[1.0], [5.0]])
    variables = Normalize("batch").init(jax.random.key(0), x, train=False)
    _, updates = Normalize("batch").apply(variables, x, train=True, mutable=["batch_stats"])
    running = jax.tree.map(lambda leaf: leaf.item(), updates["batch_stats"]["norm"])
    assert running == pytest.approx({"mean": 0.1 * 3.0, "var": 0.9 * 1.0 + 0.1 * 4.0})
    y = Normalize("batch").apply({**variables, **updates}, x, train=False)
    np.testing.assert_allclose(y, (np.asarray(x) - 0.3) / np.sqrt(1.3 + 1e-5), rtol=1e-6)


def test_an_unbiased_running_variance_is_pytorchs():
    """Over all devices; the batch itself is normalised as ever."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 3, 2, 2, 4)).astype(np.float32)
    compute = FLOAT32._replace(axis_name="batch")
    biased, unbiased = (Normalize("batch", compute._replace(running_variance=name)) for name in RUNNING_VARIANCES)
    variables = unbiased.init(jax.random.key(0), x[0], train=False)
    assert variables["batch_stats"]["norm"]["var"].tolist() == [1.0] * 4

    def train(model):
        apply = partial(model.apply, variables, train=True, mutable=["batch_stats"])
        return jax.vmap(apply, axis_name="batch")(x)

    (y, plain), (same, updates) = train(biased), train(unbiased)
    np.testing.assert_array_equal(y, same)
    values = x.reshape(-1, 4).astype(np.float64)
    for found, ddof in ((plain, 0), (updates, 1)):
        running = found["batch_stats"]["norm"]
        np.testing.assert_allclose(running["mean"][0], 0.1 * values.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(running["var"][1], 0.9 + 0.1 * values.var(axis=0, ddof=ddof), rtol=1e-5)


def test_a_width_that_groups_do_not_divide_says_so():
    with pytest.raises(ValueError, match="widths up to 16 and multiples of 16, not 24"):
        Normalize("group").init(jax.random.key(0), jnp.zeros((2, 24)), train=False)


@pytest.mark.parametrize("activation", ["relu", "maxout"])
def test_a_dense_block_is_activation_of_wx_plus_b(activation):
    rng = np.random.default_rng(0)
    features = 3 * ACTIVATIONS[activation].pieces
    x, w, b = rng.standard_normal((4, 5)), rng.standard_normal((5, features)), rng.standard_normal(features)
    block = _block(activation, "none", width=3)
    apply = jax.jit(partial(block.apply, train=True))
    y = apply({"params": {"weights": {"kernel": jnp.float32(w), "bias": jnp.float32(b)}}}, jnp.float32(x))
    if activation == "relu":
        expected = np.maximum(0.0, x @ w + b)
    else:
        expected = np.maximum(x @ w[:, :3] + b[:3], x @ w[:, 3:] + b[3:])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalization", sorted(NORMALIZATIONS))
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_a_block_takes_every_combination_and_has_one_bias(activation, normalization):
    block = _block(activation, normalization, width=16, weights=partial(nn.Conv, kernel_size=(3, 3)))
    x = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)
    init = partial(block.init_with_output, train=False)
    y, variables = jax.eval_shape(init, jax.random.key(0), x)
    assert y.shape == (2, 6, 6, 16)
    params = variables["params"]
    assert ("bias" in params["weights"]) == (normalization == "none") == ("norm" not in params)
    assert ("activation" in params) == (activation == "prelu")


def test_a_block_draws_its_kernel_from_the_initialiser():
    init = jax.jit(partial(_block("relu", "none", width=20, kernel_init="orthogonal").init, train=False))
    kernel = np.asarray(init(jax.random.key(0), jnp.zeros((1, 30)))["params"]["weights"]["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(20), atol=1e-5)


def test_a_block_takes_what_the_tables_have_under_its_names(monkeypatch):
    """Also what a plugin has added."""
    monkeypatch.setitem(ACTIVATIONS, "cube", Activation(lambda name: lambda x: x**3, pieces=1, init="threes"))
    monkeypatch.setitem(INITIALIZERS, "threes", nn.initializers.constant(3.0))
    monkeypatch.setitem(NORMALIZATIONS, "halve", lambda x, *, train, compute, name: x / 2)
    for kernel_init in ("auto", "threes"):
        block = _block("cube", "halve", width=1, kernel_init=kernel_init)
        y, _ = block.init_with_output(jax.random.key(0), jnp.ones((1, 2)), train=False)
        assert y.item() == 3.0**3


def test_the_larger_of_two_and_of_all_places():
    x = np.array([[[[1.0, 5.0], [4.0, 5.0]], [[4.0, 2.0], [0.0, 3.0]]]])
    value, pull = jax.vjp(global_max_pool, x)
    np.testing.assert_array_equal(value, [[4.0, 5.0]])
    expected = np.zeros_like(x)
    expected[0, 0, 1, 0], expected[0, 0, 0, 1] = 2.0, 3.0  # the first of equals
    np.testing.assert_array_equal(pull(jnp.array([[2.0, 3.0]]))[0], expected)

    nan = float("nan")
    a, b = jnp.array([1.0, 2.0, 3.0, nan, 1.0]), jnp.array([2.0, 1.0, 3.0, 1.0, nan])
    value, pull = jax.vjp(maximum, a, b)
    np.testing.assert_array_equal(value, [2.0, 2.0, 3.0, nan, nan])
    np.testing.assert_array_equal(pull(jnp.ones(5))[0], [0, 1, 1, 1, 0])
    assert np.isnan(global_max_pool(jnp.array([[[[1.0], [nan]]]]))).all()
