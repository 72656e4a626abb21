"""Vision Transformers: each choice against its formula, the names and sizes of timm, and images of any size."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models import INPUTS, MODELS, names
from linseed.models.layers import Compute, Input
from linseed.models.vit_blocks import Attention
from linseed.models.vit_names import NAMES
from linseed.models.vit_positions import resample, rotary, rotate

COMPUTE = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)
SMALL = dict(patch_size=4, width=8, depth=1, heads=2)
# Networks that have all kinds of parameters between them.
KINDS = [
    "deit_tiny_distilled_patch16_224",
    "vit_base_patch32_clip_224",
    "vit_base_patch16_siglip_224",
    "vit_medium_patch16_reg4_gap_256",
    "vit_giant_patch14_dinov2",
    "vit_small_plus_patch16_dinov3_qkvb",
]


def _small(name, **kwargs):
    return MODELS[name](num_classes=5, compute=COMPUTE).clone(**SMALL | kwargs)


def _images(*, size=8, count=2):
    return jax.random.normal(jax.random.key(1), (count, size, size, 3))


def _shapes(model, *, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]
    return flax.traverse_util.flatten_dict(params, sep="/")


def _variables(model, images):
    """Random ones, without compiling the initialisation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_gives_logits_that_depend_on_all_its_parameters(name):
    model, images = _small(name), _images()

    @partial(jax.grad, has_aux=True)
    def gradient(variables):
        logits = model.apply(variables, images, train=False)
        return logits[0, 0], logits

    found, logits = jax.jit(gradient)(_variables(model, images))
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    flat = flax.traverse_util.flatten_dict(found["params"], sep="/")
    assert [path for path, leaf in flat.items() if not np.any(leaf)] == []


# Parameters as timm 1.0.31 counts them, with a head of 1000 classes.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_base_patch16_224", 86_567_656),
        ("vit_base_patch32_clip_224", 88_225_000),
        ("deit_tiny_distilled_patch16_224", 5_910_800),
    ],
)
def test_networks_have_the_sizes_of_timm(name, count):
    model = MODELS[name](num_classes=1000, compute=COMPUTE)
    assert sum(leaf.size for leaf in _shapes(model, size=224).values()) == count


def _block(*, width, hidden, more=()):
    """The tensors of timm's first block, with its scales and biases."""
    names = {"norm1.weight": (width,), "norm1.bias": (width,), "attn.qkv.weight": (3 * width, width)}
    names |= {"attn.proj.weight": (width, width), "attn.proj.bias": (width,), "norm2.weight": (width,)}
    names |= {"norm2.bias": (width,), "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,), **dict(more)}
    return {f"blocks.0.{name}": shape for name, shape in names.items()}


PLAIN = {"attn.qkv.bias": (24,), "mlp.fc1.weight": (32, 8), "mlp.fc1.bias": (32,)}
PATCHES = {"patch_embed.proj.weight": (8, 3, 4, 4), "patch_embed.proj.bias": (8,)}
NORM = {"norm.weight": (8,), "norm.bias": (8,)}
HEAD = {"head.weight": (5, 8), "head.bias": (5,)}
GATES = {f"mlp.fc1_{which}.{leaf}": shape for which in "gx" for leaf, shape in [("weight", (32, 8)), ("bias", (32,))]}
POOL = {"latent": (1, 1, 8), "q.weight": (8, 8), "q.bias": (8,), "kv.weight": (16, 8), "kv.bias": (16,)}
POOL |= {"proj.weight": (8, 8), "proj.bias": (8,), "norm.weight": (8,), "norm.bias": (8,)}
POOL |= {"mlp.fc1.weight": (32, 8), "mlp.fc1.bias": (32,), "mlp.fc2.weight": (8, 32), "mlp.fc2.bias": (8,)}


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        (
            "deit_tiny_distilled_patch16_224",
            dict(cls_token=(1, 1, 8), dist_token=(1, 1, 8), pos_embed=(1, 6, 8))
            | (PATCHES | NORM | HEAD | _block(width=8, hidden=32, more=PLAIN))
            | {"head_dist.weight": (5, 8), "head_dist.bias": (5,)},
        ),
        (
            "vit_base_patch32_clip_224",
            dict(cls_token=(1, 1, 8), pos_embed=(1, 5, 8), **{"patch_embed.proj.weight": (8, 3, 4, 4)})
            | {"norm_pre.weight": (8,), "norm_pre.bias": (8,)}
            | (NORM | HEAD | _block(width=8, hidden=32, more=PLAIN)),
        ),
        (
            "vit_base_patch16_siglip_224",
            dict(pos_embed=(1, 4, 8))
            | (PATCHES | NORM | HEAD | _block(width=8, hidden=32, more=PLAIN))
            | {f"attn_pool.{tensor}": shape for tensor, shape in POOL.items()},
        ),
        (
            "vit_medium_patch16_reg4_gap_256",
            dict(reg_token=(1, 4, 8), pos_embed=(1, 4, 8))
            | {"fc_norm.weight": (8,), "fc_norm.bias": (8,)}
            | _block(width=8, hidden=32, more=PLAIN | {"ls1.gamma": (8,), "ls2.gamma": (8,)})
            | (PATCHES | HEAD),
        ),
        (
            "vit_small_plus_patch16_dinov3_qkvb",
            dict(cls_token=(1, 1, 8), reg_token=(1, 4, 8))
            | (PATCHES | NORM | HEAD)
            | _block(width=8, hidden=32, more=GATES | dict.fromkeys(["gamma_1", "gamma_2"], (8,)))
            | {"blocks.0.attn.q_bias": (8,), "blocks.0.attn.v_bias": (8,)},
        ),
    ],
)
def test_tensors_have_the_names_and_shapes_of_timm(name, tensors):
    model = _small(name)
    ours = _shapes(model, size=8)
    theirs = {
        names.torch_name(path, model.torch_names): names.to_torch(path, np.empty(leaf.shape)).shape
        for path, leaf in ours.items()
    }
    assert len(theirs) == len(ours)
    assert theirs == tensors


STRETCHED = [f"vit_{name}" for name in ("medium_patch16_gap_384", "base_patch16_clip_384", "large_patch14_clip_336")]
STRETCHED += ["vit_huge_patch14_clip_336", "vit_gigantic_patch14_clip_378"]


def test_every_name_says_its_size_and_what_it_was_trained_on():
    assert len(NAMES) == 128
    for name in NAMES:
        images = INPUTS.get(name, Input())
        pixels = int(name.rpartition("_")[2]) if name[-3:].isdigit() else 518 if "dinov2" in name else 256
        assert images.size == pixels, name
        assert images.fit == ("stretch" if name in STRETCHED else "crop"), name
        assert f"patch{MODELS[name](num_classes=1, compute=COMPUTE).patch_size}_" in name


def test_attention_is_the_softmax_of_products_of_queries_and_keys():
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 5, 6)), np.float64)
    attention = Attention(heads=2, qkv_bias="query_value", grid=None, compute=COMPUTE)
    shapes = jax.eval_shape(attention.init, jax.random.key(0), x)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)["params"]
    qkv = x[0] @ params["qkv"]["kernel"] + np.concatenate([params["q_bias"], np.zeros(6), params["v_bias"]])
    heads = []
    for head in range(2):
        q, k, v = (part[:, 3 * head : 3 * head + 3] for part in np.split(qkv, 3, axis=1))
        weights = np.exp(q @ k.T / np.sqrt(3))
        heads.append(weights / weights.sum(axis=1, keepdims=True) @ v)
    expected = np.concatenate(heads, axis=1) @ params["proj"]["kernel"] + params["proj"]["bias"]
    np.testing.assert_allclose(attention.apply({"params": params}, x)[0], expected, rtol=1e-4, atol=1e-4)


def test_the_softmax_of_attention_is_float32_under_bfloat16():
    attention = Attention(heads=1, qkv_bias="all", grid=None, compute=COMPUTE._replace(dtype=jnp.bfloat16))
    x = jax.ShapeDtypeStruct((1, 3, 4), jnp.bfloat16)
    program = str(jax.make_jaxpr(partial(attention.init_with_output))(jax.random.key(0), x))
    exponentials = [line for line in program.splitlines() if "= exp" in line]
    assert exponentials and all("f32" in line.partition("=")[0] for line in exponentials)


def test_rotary_products_depend_on_the_distance_of_patches_alone():
    angles = rotary((3, 4), features=8, prefix=1)
    q, k = np.random.default_rng(0).standard_normal((2, 8))
    turned_q, turned_k = (
        np.asarray(rotate(jnp.broadcast_to(jnp.asarray(x, jnp.float32), (1, 13, 1, 8)), angles))[0, :, 0]
        for x in (q, k)
    )
    np.testing.assert_allclose(turned_q[0], q, rtol=1e-6)  # the class token stays
    products = (turned_q[1:] @ turned_k[1:].T).reshape(3, 4, 3, 4)
    for row, column in [(0, 1), (1, 0), (2, 3)]:
        same = [products[i, j, i + row, j + column] for i in range(3 - row) for j in range(4 - column)]
        np.testing.assert_allclose(same, same[0], rtol=1e-4, atol=1e-5)


def test_rotary_angles_are_those_of_the_paper():
    # Two columns: their centres are at -1/2 and 1/2 of the scale from edge to edge; the one row is in the middle.
    angles = rotary((1, 2), features=8, prefix=0)
    columns = np.pi * np.array([[-1, -0.1], [1, 0.1]])  # 2 pi x / period, periods 100^(0/2) and 100^(1/2)
    np.testing.assert_allclose(angles, np.tile(np.concatenate([np.zeros((2, 2)), columns], axis=1), 2), atol=1e-12)


# What `F.interpolate(mode="bicubic", antialias=True)` of PyTorch 2 makes of sin(3 i^2), i = 0 for the class token.
RESAMPLED = {
    (4, 3): "0 -0.045257 0.500999 -0.177247 -0.480224 -0.087519 -0.628339 -0.938484 -0.382318 0.386803",
    (3, 5): """0 0.266926 -0.123409 -0.547802 0.396319 1.072298 -0.220918 -0.393671 -0.485856 0.485575 1.141564 -0.79697
        -0.693668 -0.387782 0.482764 1.026034 0.118831 -0.075585 -0.359796 -0.311091 -0.246109 0.793402 0.369497
        -0.35246 -0.838198 -1.078047""",
    (7, 3): "0 -0.152535 -0.535798 -0.132338 -0.075512 -0.248181 -0.045621 -0.510983 0.026461 0.021203",
}


@pytest.mark.parametrize(("old", "new"), sorted(RESAMPLED))
def test_positions_are_resized_as_by_pytorch(old, new):
    table = np.sin(3.0 * np.arange(1 + old**2) ** 2).astype(np.float32).reshape(1, -1, 1)
    resized = _small("vit_tiny_patch16_224").resized["pos_embed"](table, (1, 1 + new**2, 1))
    np.testing.assert_allclose(resized[0, :, 0], list(map(float, RESAMPLED[old, new].split())), atol=2e-6)


def test_positions_of_the_same_size_or_of_no_square_stay():
    table = np.random.default_rng(0).standard_normal((1, 9, 2)).astype(np.float32)
    np.testing.assert_allclose(resample(table, (1, 9, 2), prefix=0), table, atol=1e-6)
    for shape, prefix in [((1, 16, 2), 1), ((1, 15, 2), 0), ((16,), 0), ((1, 4, 2), 9)]:
        assert resample(table, shape, prefix=prefix) is table


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("deit_tiny_distilled_patch16_224", 2),
        ("deit3_small_patch16_224", 0),
        ("vit_base_patch16_siglip_224", 0),
        ("vit_small_patch14_reg4_dinov2", 0),
    ],
)
def test_the_table_of_one_size_of_images_serves_another(name, prefix):
    model = _small(name)
    shapes = [_shapes(model, size=size)["stem/pos_embed"].shape for size in (8, 16)]
    table = np.random.default_rng(0).standard_normal(shapes[0]).astype(np.float32)
    resized = model.resized["pos_embed"](table, shapes[1])
    assert resized.shape == shapes[1] == (1, prefix + 16, 8)
    np.testing.assert_array_equal(resized[:, :prefix], table[:, :prefix])


def test_patches_are_what_a_config_says():
    for patch, tokens in [(4, 64), (8, 16)]:
        shape = _shapes(_small("vit_base_patch16_224", patch_size=patch), size=32)["stem/pos_embed"].shape
        assert shape == (1, 1 + tokens, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(patch_size=9), "images of 8x8 hold no patch of 9: take a smaller patch_size"),
        (dict(heads=3), "3 heads do not divide a width of 8: change width or heads"),
        (dict(positions="rotary", width=6), "rotary positions need heads of a multiple of 4 features, not 3"),
        (dict(class_token=False), "pool='token' needs class_token=True"),
    ],
)
def test_what_cannot_be_built_says_so(changes, message):
    with pytest.raises(ValueError, match=message):
        _shapes(_small("vit", **changes), size=8)


@pytest.mark.parametrize("rate", ["dropout", "block_dropout", "drop_path"])
def test_what_is_drawn_is_drawn_in_training_alone(rate):
    model, images = _small("vit", **{rate: 0.5}), _images(count=8)
    variables = _variables(model, images)

    @jax.jit
    def train(seed):
        return model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(seed)})

    assert not np.array_equal(train(1), train(2))
    evaluated, without = (
        jax.jit(partial(each.apply, train=mode))(variables, images)
        for each, mode in [(model, False), (model.clone(**{rate: 0.0}), True)]
    )
    np.testing.assert_array_equal(evaluated, without)


def test_blocks_are_dropped_at_rates_that_rise_to_that_of_the_last():
    rates = []
    model = _small("vit", depth=4, drop_path=0.4)
    build = model.block
    _shapes(model.clone(block=lambda **kwargs: rates.append(kwargs["drop_rate"]) or build(**kwargs)), size=8)
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4])


def test_the_logits_of_a_distilled_network_are_the_mean_of_two_heads():
    model, images = _small("deit_tiny_distilled_patch16_224"), _images()
    params = _variables(model, images)["params"]
    logits = jax.jit(lambda params: model.apply({"params": params}, images, train=False))
    apart = [logits(params | {head: jax.tree.map(np.zeros_like, params[head])}) for head in ("head", "head_dist")]
    np.testing.assert_allclose(sum(apart), logits(params), rtol=1e-4, atol=1e-5)
