"""Every model of the table: its contract, its size, and batch normalisation over devices."""

import functools
import inspect
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import normalization
from jax.interpreters import partial_eval
from jax.sharding import Mesh, PartitionSpec
from support.numpy_evaluation import evaluate

from linseed import ranges
from linseed.models import MODELS, convnext, densenet, efficientnet, mixer, mobilenet, regnet, resnet, vit_names
from linseed.models.inverted_residual import ConvBlock, DepthwiseSeparable, FusedInvertedResidual, InvertedResidual, Row
from linseed.models.layers import ACTIVATIONS, INITIALIZERS, NORMALIZATIONS, Block, Compute
from linseed.models.pooling import max_pool_2x2
from linseed.models.resnet import STEMS, BasicBlock, BottleneckBlock, PlainShortcutBlock
from linseed.models.wide_resnet import PreActivationBlock

NUM_CLASSES = 7
FLOAT32 = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)

# What is run differs so from the defaults.
ARGUMENTS = {
    "alexnet": dict(stem="cifar"),
    "cnn": dict(widths=(4, 6), dropout=0.5),
    "efficientnet_b0": dict(stem="cifar", drop_path=0.5),
    "mlp": dict(widths=(8, 6), normalization="batch", dropout=0.5),
    "resnet18": dict(stem="cifar", drop_path=0.5),
    "resnet50": dict(drop_path=0.5),
    "speednet": dict(stem_width=4, widths=(4, 6, 8), norm_eps=1e-5, logit_scale=0.1),
    "vgg11": dict(stem="cifar", normalization="batch"),
    "vit": dict(patch_size=4, drop_path=0.5),
}

# A stage for each kind of inverted residual block.
INVERTED_RESIDUALS = (
    (Row(ConvBlock, 1, 3, 1, 1, 8),),
    (Row(DepthwiseSeparable, 1, 3, 1, 1, 8, squeeze=True),),
    (Row(FusedInvertedResidual, 1, 3, 2, 2, 8),),
    (Row(InvertedResidual, 2, 5, 2, 2, 16, squeeze=True),),
)
# What is run is the same network with fewer or thinner layers; None is the network as it is built.
SMALLER = {
    "alexnet": None,
    "cnn": None,
    "efficientnet_b0": dict(stages=INVERTED_RESIDUALS, stem_width=8, num_features=24),
    "linear": None,
    "mlp": None,
    "resnet18": dict(stage_sizes=(1, 2), width=4),
    "resnet20": dict(stage_sizes=(1, 2), width=4),
    "resnet50": dict(stage_sizes=(1, 2), width=2),
    "speednet": None,
    "vgg11": dict(stage_sizes=(1, 2), widths=(4, 6)),
    "vit": dict(depth=2, width=12),
    "wide_resnet28_10": dict(stage_size=1, widths=(16, 8)),
}
# The same parts as one of those, only more: their shapes and sizes are checked, and they are not run.
DEEPER_TWINS = {"resnet32", "resnet34", "resnet44", "resnet56", "resnet101", "resnet110", "resnet152"}
DEEPER_TWINS |= {"vgg13", "vgg16", "vgg19"}
# Families whose tests are in files of their own.
NORMALIZED = sorted(set(SMALLER) - {"alexnet", "linear", "vit"})

# Shape of the images, classes and parameters, as published or exact from the layer shapes in the papers, of the network
# by its defaults; mlp by LENET.
PUBLISHED = {
    "alexnet": ((224, 224, 3), 1000, 61_100_840),
    "efficientnet_b0": ((64, 64, 3), 1000, 5_288_548),
    "linear": ((32, 32, 3), 10, 3_072 * 10 + 10),
    "mlp": ((28, 28, 1), 10, 266_610),  # LeNet-300-100, LeCun et al. 1998
    "mobilenetv3_small_100": ((64, 64, 3), 1000, 2_542_856),
    "resnet18": ((64, 64, 3), 1000, 11_689_512),
    "resnet34": ((64, 64, 3), 1000, 21_797_672),
    "resnet50": ((64, 64, 3), 1000, 25_557_032),
    "resnet101": ((64, 64, 3), 1000, 44_549_160),
    "resnet152": ((64, 64, 3), 1000, 60_192_808),
    "resnet20": ((32, 32, 3), 10, 269_722),
    "resnet32": ((32, 32, 3), 10, 464_154),
    "resnet44": ((32, 32, 3), 10, 658_586),
    "resnet56": ((32, 32, 3), 10, 853_018),
    "resnet110": ((32, 32, 3), 10, 1_727_962),
    "vgg11": ((224, 224, 3), 1000, 132_863_336),
    "vgg13": ((224, 224, 3), 1000, 133_047_848),
    "vgg16": ((224, 224, 3), 1000, 138_357_544),
    "vgg19": ((224, 224, 3), 1000, 143_667_240),
    "vit": ((224, 224, 3), 1000, 5_717_416),  # Touvron et al. 2021, DeiT-Ti: 5.7 million
    "wide_resnet28_10": ((32, 32, 3), 10, 36_479_194),
}
# The others of the families whose tests are in files of their own, tests/models/test_<family>.py.
FAMILIES = (convnext, densenet, efficientnet, mixer, mobilenet, regnet, resnet, vit_names)
APART = {name for family in FAMILIES for name in family.NAMES} - {*SMALLER, *DEEPER_TWINS}
LENET = dict(widths=(300, 100))
# Millions of parameters: He et al. 2015, table 6; Simonyan and Zisserman 2014, table 2; Zagoruyko and Komodakis 2016.
ROUNDED = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}
ROUNDED |= {"vgg11": 133, "vgg13": 133, "vgg16": 138, "vgg19": 144, "wide_resnet28_10": 36.5}


def _parameters(name):
    """The parameters of a model in a config: the fields of its class that the entry does not fix."""
    entry = MODELS[name]
    others = {"num_classes", "compute", "parent", "name", *getattr(entry, "keywords", ())}
    return {key: value for key, value in inspect.signature(entry).parameters.items() if key not in others}


STOCHASTIC = [name for name in SMALLER if {"dropout", "drop_path"} & set(_parameters(name))]


def _model(name, *, dtype=jnp.float32, axis_name=None, **kwargs):
    compute = FLOAT32._replace(dtype=dtype, axis_name=axis_name)
    return MODELS[name](num_classes=NUM_CLASSES, compute=compute, **ARGUMENTS.get(name, {}) | kwargs)


def _small(name, **kwargs):
    model = _model(name, **kwargs)
    return model.clone(**SMALLER[name]) if SMALLER[name] else model


def _images(*, count=4, size=16):
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


def _by_default(name):
    """The network as published, computed in bfloat16."""
    num_classes = PUBLISHED[name][1] if name in PUBLISHED else 10
    compute = FLOAT32._replace(dtype=jnp.bfloat16)
    return MODELS[name](num_classes=num_classes, compute=compute, **(LENET if name == "mlp" else {}))


@functools.cache
def _published(name):
    """Shapes of (logits, variables) of that network for four images."""
    shape = PUBLISHED[name][0] if name in PUBLISHED else (32, 32, 3)
    images = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    return jax.eval_shape(partial(_by_default(name).init_with_output, train=False), jax.random.key(0), images)


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_model_is_run_or_is_the_deeper_twin_of_one_that_is():
    assert set(SMALLER) | DEEPER_TWINS | APART == set(MODELS)
    assert set(PUBLISHED) | APART == set(MODELS) - {"cnn", "speednet"}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_parameter_has_a_range_and_a_default_within_it(name):
    for key, parameter in _parameters(name).items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert ranges.convert(parameter.default, parameter.annotation) == parameter.default, key


@pytest.mark.parametrize(
    ("name", "parameter", "names"),
    [
        *((name, "activation", set(ACTIVATIONS)) for name in ("cnn", "mlp", "speednet")),
        *((name, "kernel_init", {"auto", *INITIALIZERS}) for name in ("cnn", "mlp", "speednet")),
        ("speednet", "head_init", {"auto", *INITIALIZERS}),
        *((name, "normalization", set(NORMALIZATIONS)) for name in ("cnn", "mlp", "vgg16")),
        *((name, "stem", {"cifar", "imagenet"}) for name in ("alexnet", "resnet18", "vgg16")),
    ],
)
def test_a_parameter_may_have_the_names_of_its_table(name, parameter, names):
    annotation = _parameters(name)[parameter].annotation
    assert all(ranges.convert(each, annotation) == each for each in names)
    with pytest.raises(ranges.RangeError) as error:
        ranges.convert("xyz", annotation)
    assert all(repr(each) in str(error.value) for each in names)
    assert str(error.value).count("'") == 2 * len(names)


@pytest.mark.parametrize("name", sorted({*SMALLER, *PUBLISHED}))
def test_logits_and_variables_are_float32_in_bfloat16_computation(name):
    logits, variables = _published(name)
    assert logits.shape == (4, PUBLISHED[name][1] if name in PUBLISHED else 10)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert set(variables) | {"batch_stats"} == {"params", "batch_stats"}
    assert "head" in variables["params"]


@pytest.mark.parametrize("name", sorted(SMALLER))
def test_a_bfloat16_network_is_the_float32_one_but_for_rounding(name):
    images = _images()
    variables = _any_variables(_small(name), images)
    exact, rounded = (
        jax.jit(partial(_small(name, dtype=dtype).apply, train=False))(variables, images)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert exact.shape == rounded.shape == (4, NUM_CLASSES)
    assert exact.dtype == rounded.dtype == jnp.float32
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    assert 0.0 < error < 0.1


@pytest.mark.parametrize("name", sorted(SMALLER))
def test_gradients_and_statistics_are_those_of_numpy_in_float64(name):
    """XLA fuses operations, and jaxlib has had fusions that were wrong by up to a per cent."""
    model = _small(name, **{rate: 0.0 for rate in ("dropout", "drop_path") if rate in _parameters(name)})
    images, labels = np.asarray(_images()), np.arange(4)
    rest = _any_variables(model, images)
    params = rest.pop("params")

    def loss(params, rest, images):
        logits, new = model.apply({"params": params, **rest}, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, NUM_CLASSES)).mean(), new

    gradient = jax.value_and_grad(loss, has_aux=True)
    expected = evaluate(gradient, params, rest, images)
    found = jax.jit(gradient)(params, rest, images)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # A bias before a normalisation has no gradient but rounding.
        np.testing.assert_allclose(leaf, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max() + 1e-6 * largest)


@pytest.mark.parametrize("name", sorted(SMALLER))
def test_no_gradient_goes_where_two_values_are_equal(name, monkeypatch):
    """XLA may compute a value and its maximum with two roundings, so that they differ: `pooling.maximum`."""
    # Flax keeps a fast variance from being negative; that is a value for each channel, of which XLA makes one.
    monkeypatch.setattr(normalization, "_compute_stats", _with_exact_variance(normalization._compute_stats))
    model, images = _small(name), _images()
    variables = _any_variables(model, images)

    def loss(params, images):
        rngs = {"dropout": jax.random.key(0)}
        apply = partial(model.apply, {**variables, "params": params}, train=True, rngs=rngs, mutable=["batch_stats"])
        return jnp.sum(apply(images)[0])

    program = jax.make_jaxpr(jax.grad(loss))(variables["params"], images).jaxpr
    program, _ = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))  # softmax drops the gradient of its max
    compared = {str(each.invars[0].aval.dtype) for each in _equations(program) if each.primitive.name == "eq"}
    assert not {name for name in compared if name.startswith("float")}


def _with_exact_variance(compute):
    return lambda *given, **more: compute(*given, **more | {"use_fast_variance": False})


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


@pytest.mark.parametrize("name", NORMALIZED)
def test_training_moves_the_statistics_alike_on_every_device(name):
    model, images = _small(name, axis_name="batch"), _images()
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


@pytest.mark.parametrize("name", sorted(SMALLER))
def test_evaluation_sees_each_image_alone_and_keeps_the_statistics(name):
    model, images = _small(name, axis_name="batch"), _images()
    variables = _any_variables(model, images)
    evaluate = jax.jit(partial(model.apply, train=False, mutable=["batch_stats"]))
    logits, updates = evaluate(variables, images)
    jax.tree.map(np.testing.assert_array_equal, dict(updates), {k: v for k, v in variables.items() if k != "params"})
    other_company, _ = evaluate(variables, images.at[1:].multiply(3.0))
    np.testing.assert_array_equal(logits[0], other_company[0])
    assert not np.array_equal(logits[1:], other_company[1:])


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_count_is_the_published_one(name):
    params = _published(name)[1]["params"]
    assert _count(params) == PUBLISHED[name][2]
    if name in ROUNDED:
        assert _count(params) / 1e6 == pytest.approx(ROUNDED[name], rel=0.02)


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_a_residual_block_starts_as_the_identity(block):
    x = nn.relu(jax.random.normal(jax.random.key(0), (2, 6, 6, 8)))
    width = 8 if block is BasicBlock else 2
    block = block(width=width, stride=1, drop_rate=0.0, compute=FLOAT32)
    y, _ = block.init_with_output(jax.random.key(1), x, train=False)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("size", [6, 7])
def test_a_plain_shortcut_drops_pixels_and_adds_zero_channels(size):
    x = nn.relu(jax.random.normal(jax.random.key(0), (2, size, size, 4)))
    block = PlainShortcutBlock(width=6, stride=2, drop_rate=0.0, compute=FLOAT32)
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


@pytest.mark.parametrize(
    ("name", "size", "layers", "sizes"),
    [
        ("alexnet", 224, ["conv1", "conv2", "conv3", "conv4", "conv5"], [55, 27, 13, 13, 13]),
        ("vgg11", 224, [f"stage{i}_block1" for i in range(1, 6)], [224, 112, 56, 28, 14]),
        (
            "wide_resnet28_10",
            32,
            ["stem"] + [f"stage{i}_block{j}" for i in (1, 2, 3) for j in (1, 4)],
            [32] * 3 + [16] * 2 + [8] * 2,
        ),
    ],
)
def test_feature_maps_have_the_published_sizes(name, size, layers, sizes):
    apply = partial(_by_default(name).init_with_output, train=False, capture_intermediates=True, mutable=True)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    outputs = jax.eval_shape(apply, jax.random.key(0), images)[1]["intermediates"]
    assert [outputs[layer]["__call__"][0].shape[1] for layer in layers] == sizes


class PlainSpeedNet(nn.Module):
    """The network of configs/cifar10_small.py, written out."""

    @nn.compact
    def __call__(self, x, *, train):
        he = dict(kernel_init=nn.initializers.kaiming_normal())
        norm = partial(nn.BatchNorm, not train, momentum=0.6, epsilon=1e-5, use_scale=False)
        x = nn.relu(nn.Conv(24, (2, 2), padding="VALID", name="stem", **he)(x))
        for i, width in enumerate(CIFAR10_SMALL["widths"]):
            x = PlainSpeedBlock(width, name=f"block{i + 1}")(x, norm=norm)
        return nn.Dense(NUM_CLASSES, use_bias=False, name="head")(jnp.max(x, axis=(1, 2))) / 9


class PlainSpeedBlock(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, *, norm):
        conv = partial(nn.Conv, self.width, (3, 3), use_bias=False, kernel_init=nn.initializers.kaiming_normal())
        x = nn.max_pool(conv(name="conv1")(x), (2, 2), (2, 2))
        x = nn.relu(norm(name="norm1")(x))
        return nn.relu(norm(name="norm2")(conv(name="conv2")(x)))


CIFAR10_SMALL = dict(
    stem_width=24,
    stem_bias_range=0.0,
    widths=(8, 16),
    activation="relu",
    kernel_init="kaiming_normal",
    head_init="lecun_normal",
    norm_momentum=0.6,
    norm_eps=1e-5,
    logit_scale=1 / 9,
)


def test_speednet_with_the_arguments_of_cifar10_small_is_the_network_written_out():
    images = _images(count=2)
    plain, ours = PlainSpeedNet(), _model("speednet", **CIFAR10_SMALL)
    expected, variables = (jax.jit(partial(m.init, train=False))(jax.random.key(3), images) for m in (plain, ours))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    for train in (False, True):
        outputs = [
            jax.jit(partial(m.apply, train=train, mutable=["batch_stats"]))(variables, images) for m in (plain, ours)
        ]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *outputs)


def test_speednet_of_the_record_has_its_number_of_parameters():
    _, shapes = _published("speednet")
    convs = 24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256
    biases = 24 + 2 * (64 + 256 + 256)  # the stem's and the normalisations', whose scales are fixed at one
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 12 * 24 + 9 * convs + biases + 256 * 10


def test_the_bias_of_the_stem_starts_within_its_range():
    bias = _model("speednet", stem_width=400, stem_bias_range=0.2).init(
        jax.random.key(0), _images(count=1), train=False
    )["params"]["stem"]["bias"]
    assert 0.19 < float(jnp.abs(bias).max()) <= 0.2 and abs(float(bias.mean())) < 0.03


@pytest.mark.parametrize("name", ["cnn", "speednet"])
def test_a_step_on_four_devices_equals_one_device_on_the_whole_batch(name):
    devices = np.array(jax.devices())
    assert len(devices) > 1, "tests/conftest.py sets several CPU devices"
    kwargs = dict(dropout=0.0) if name == "cnn" else {}
    images = _images(count=4 * len(devices), size=12)
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


@pytest.mark.parametrize("name", STOCHASTIC)
def test_training_draws_by_the_key_and_at_rate_zero_asks_for_none(name):
    model, images = _small(name), _images(count=8)
    variables = _any_variables(model, images)

    @jax.jit
    def logits(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    assert np.array_equal(logits(0), logits(0))
    assert not np.array_equal(logits(0), logits(1))
    rate = "drop_path" if "drop_path" in _parameters(name) else "dropout"
    train = partial(model.clone(**{rate: 0.0}).apply, train=True, mutable=["batch_stats"])
    jax.eval_shape(train, variables, images)


def test_drop_path_rises_linearly_to_the_rate_of_the_last_block():
    rates = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, BasicBlock) and context.method_name == "__call__":
            rates.append(context.module.drop_rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        jax.eval_shape(partial(_model("resnet18", drop_path=0.4).init, train=False), jax.random.key(0), _images())
    np.testing.assert_allclose(rates, 0.4 * np.arange(1, 9) / 8)


def test_drop_path_drops_the_whole_branch_of_an_example_or_scales_it_up():
    x = nn.relu(_images(count=64, size=4))
    block = BasicBlock(width=3, stride=1, drop_rate=0.25, compute=FLOAT32)
    variables = _any_variables(block, x)

    def run(rate):
        apply = partial(block.clone(drop_rate=rate).apply, train=True, mutable=["batch_stats"])
        return np.asarray(jax.jit(apply)(variables, x, rngs={"dropout": jax.random.key(0)})[0])

    # The branch is what a block adds to x, wherever the ReLU after the sum lets it through.
    kept, drawn = run(0.0), run(0.25)
    through = (kept > 0) & (drawn > 0)
    scaled = np.isclose(drawn - x, (kept - x) / 0.75, atol=1e-5) | ~through
    dropped = np.isclose(drawn, x, atol=1e-6)
    per_example = np.stack([scaled.all(axis=(1, 2, 3)), dropped.all(axis=(1, 2, 3))])
    assert np.all(per_example.sum(axis=0) == 1)
    assert 4 <= per_example[1].sum() <= 28  # 16 expected, standard deviation 3.5


@pytest.mark.parametrize("width", [4, 6])
def test_a_pre_activation_block_adds_to_x_or_to_a_projection(width):
    x = _images(count=2, size=7)
    x = jnp.concatenate([x, x[..., :1]], axis=-1)
    stride = 1 if width == 4 else 2
    block = PreActivationBlock(width=width, stride=stride, dropout=0.0, compute=FLOAT32)
    variables = _any_variables(block, x)
    assert ("shortcut_conv" in variables["params"]) == (width != 4)
    variables["params"]["conv2"]["kernel"] *= 0.0
    y = jax.jit(partial(block.apply, train=False))(variables, x)
    if width == 4:
        np.testing.assert_array_equal(y, x)
    else:
        # Running mean and variance, scale and bias are ones.
        relu = np.maximum(0.0, (np.asarray(x) - 1.0) / np.sqrt(1.0 + 1e-5) + 1.0)
        expected = relu[:, ::2, ::2] @ variables["params"]["shortcut_conv"]["kernel"][0, 0]
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_the_linear_classifier_is_wx_plus_b_and_starts_at_a_guess():
    model, images = _model("linear"), _images()
    logits, variables = jax.jit(partial(model.init_with_output, train=False))(jax.random.key(0), images)
    labels = np.arange(4)
    np.testing.assert_allclose(optax.softmax_cross_entropy_with_integer_labels(logits, labels), np.log(NUM_CLASSES))
    margins = np.maximum(0.0, logits - np.take_along_axis(np.asarray(logits), labels[:, None], 1) + 1.0)
    np.testing.assert_array_equal(margins.sum(axis=1) - 1.0, NUM_CLASSES - 1.0)
    variables = _any_variables(model, images)
    kernel, bias = variables["params"]["head"]["kernel"], variables["params"]["head"]["bias"]
    logits = jax.jit(partial(model.apply, train=True))(variables, images)
    np.testing.assert_allclose(logits, np.asarray(images).reshape(4, -1) @ kernel + bias, rtol=1e-4, atol=1e-4)


def test_cnn_names_its_parameters_by_block():
    params = jax.eval_shape(partial(_model("cnn").init, train=False), jax.random.key(0), _images())["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "block1": {"conv": {"kernel": (3, 3, 3, 4)}, "norm": {"scale": (4,), "bias": (4,)}},
        "block2": {"conv": {"kernel": (3, 3, 4, 6)}, "norm": {"scale": (6,), "bias": (6,)}},
        "head": {"kernel": (6, NUM_CLASSES), "bias": (NUM_CLASSES,)},
    }


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_every_block_has_the_names_that_were_chosen(name):
    chosen = dict(activation="tanh", kernel_init="orthogonal", normalization="layer")
    blocks = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, Block):
            blocks.append({key: getattr(context.module, key) for key in chosen})
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        jax.eval_shape(partial(_model(name, **chosen).init, train=False), jax.random.key(0), _images())
    assert blocks == [chosen, chosen]


@pytest.mark.parametrize("name", ["cnn", "mlp"])
@pytest.mark.parametrize("normalization", sorted(NORMALIZATIONS))
@pytest.mark.parametrize("activation", ["maxout", "prelu"])
def test_any_block_choice_builds_a_network(name, activation, normalization):
    model = _model(name, activation=activation, normalization=normalization, widths=(8, 16))
    init = partial(model.init_with_output, train=False)
    logits, variables = jax.eval_shape(init, jax.random.key(0), _images())
    assert logits.shape == (4, NUM_CLASSES)
    assert set(variables) == ({"params", "batch_stats"} if normalization == "batch" else {"params"})


@pytest.mark.parametrize("name", ["cnn", "mlp", "speednet"])
def test_a_list_of_widths_is_as_good_as_a_tuple(name):
    """As JSON has it."""
    as_list, as_tuple = (
        jax.eval_shape(partial(_model(name, widths=widths).init, train=False), jax.random.key(0), _images())
        for widths in ([4, 6], (4, 6))
    )
    assert as_list == as_tuple


@pytest.mark.parametrize("size", [6, 7])
def test_max_pooling_is_the_maximum_of_each_2x2_window(size):
    x = np.asarray(_images(count=2, size=size))
    half = size // 2
    windows = x[:, : 2 * half, : 2 * half].reshape(2, half, 2, half, 2, 3)
    np.testing.assert_array_equal(max_pool_2x2(jnp.asarray(x)), windows.max(axis=(2, 4)))


def test_images_too_small_for_the_network_say_so():
    with pytest.raises(ValueError, match="fewer widths or larger images"):
        _any_variables(_model("cnn", widths=(2,) * 5), _images(size=8))
    with pytest.raises(ValueError, match="larger images"):
        _any_variables(_model("vgg11"), _images(size=31))
    with pytest.raises(ValueError, match="stem='cifar' or larger images"):
        _any_variables(_model("alexnet", stem="imagenet"), _images(size=62))


@pytest.mark.parametrize("name", ["cnn", "mlp", "speednet"])
def test_no_widths_are_refused(name):
    with pytest.raises(ranges.RangeError, match="a tuple of at least 1"):
        ranges.convert((), _parameters(name)["widths"].annotation)


def test_a_misspelt_argument_is_an_error():
    with pytest.raises(TypeError, match="drop_out"):
        _model("cnn", drop_out=0.1)
