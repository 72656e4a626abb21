"""MLP-Mixer and ResMLP: sizes, names of tensors as timm has them, blocks, and what is random in training."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models import mixer, names
from linseed.models.layers import Compute

FLOAT32 = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)
KINDS = ["mixer_s16_224", "gmixer_12_224", "resmlp_12_224"]

# Parameters with 1000 classes for images of 224x224, as timm counts them.
PARAMETERS = {
    "mixer_s32_224": 19_104_624,
    "mixer_b16_224": 59_880_472,
    "gmixer_24_224": 24_721_096,
    "resmlp_big_24_224": 129_138_280,
}

_MIXER = ["norm1", "norm2", *(f"mlp_{over}.fc{i}" for over in ("tokens", "channels") for i in (1, 2))]
_RESMLP = ["linear_tokens", "mlp_channels.fc1", "mlp_channels.fc2"]
# timm's names of the layers and the parameters of a block.
TENSORS = {
    "mixer_s16_224": (_MIXER, []),
    "gmixer_12_224": (_MIXER, []),
    "resmlp_12_224": (_RESMLP, ["ls1", "ls2", *(f"norm{i}.{leaf}" for i in (1, 2) for leaf in ("alpha", "beta"))]),
}


def _small(name, **kwargs):
    model = mixer.NAMES[name](num_classes=5, compute=FLOAT32, **dict(patch_size=4) | kwargs)
    return model.clone(depth=2, width=8)


def _images(count=2):
    return jax.random.normal(jax.random.key(0), (count, 8, 12, 3))


def _shapes(model, images):
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]


def _random_variables(model, images):
    """Every parameter random, so that none hides what it does."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), _shapes(model, images))
    return {"params": params}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_parameters_that_timm_counts(name):
    model = mixer.NAMES[name](num_classes=1000, compute=FLOAT32)
    shapes = _shapes(model, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


@pytest.mark.parametrize("name", KINDS)
def test_tensors_have_the_names_of_timm(name):
    layers, alone = TENSORS[name]
    paths = flax.traverse_util.flatten_dict(_shapes(_small(name), _images()), sep="/")
    found = [names.torch_name(path, mixer.MlpMixer.torch_names) for path in paths]
    expected = [f"{layer}.{leaf}" for layer in ("stem.proj", "head") for leaf in ("weight", "bias")]
    expected += ["norm.alpha", "norm.beta"] if name.startswith("resmlp") else ["norm.weight", "norm.bias"]
    for block in ("blocks.0", "blocks.1"):
        expected += [f"{block}.{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
        expected += [f"{block}.{leaf}" for leaf in alone]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("name", KINDS)
def test_places_are_mixed_by_kernels_over_places(name):
    """Six patches: 2 x 3."""
    block = _shapes(_small(name), _images())["block1"]
    layer = block["linear_tokens"] if name.startswith("resmlp") else block["mlp_tokens"]["fc1"]
    assert layer["kernel"].shape[0] == 6


def test_a_mixer_block_is_its_formula():
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 6, 8)))
    block = mixer.MixerBlock(mlp=mixer.Mlp, tokens=0.5, channels=4.0, drop_rate=0.0, compute=FLOAT32)
    variables = _random_variables(block, x)
    params = variables["params"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * params[name]["scale"] + params[name]["bias"]

    def mlp(x, name):
        first, second = params[name]["fc1"], params[name]["fc2"]
        hidden = jax.nn.gelu(x @ first["kernel"] + first["bias"], approximate=False)
        return np.asarray(hidden) @ second["kernel"] + second["bias"]

    y = x + mlp(norm(x, "norm1").transpose(0, 2, 1), "mlp_tokens").transpose(0, 2, 1)
    y = y + mlp(norm(y, "norm2"), "mlp_channels")
    np.testing.assert_allclose(jax.jit(partial(block.apply, train=False))(variables, x), y, rtol=1e-4, atol=1e-3)


def test_gates_start_open():
    x = jax.random.normal(jax.random.key(0), (1, 8))
    params = mixer.GatedMlp(hidden=6, compute=FLOAT32).init(jax.random.key(1), x)["params"]["fc1"]
    np.testing.assert_array_equal(params["bias"], [0, 0, 0, 1, 1, 1])
    assert np.abs(params["kernel"][:, 3:]).max() < 1e-4 < np.abs(params["kernel"][:, :3]).min()


@pytest.mark.parametrize("name", KINDS)
def test_a_bfloat16_network_is_the_float32_one_but_for_rounding(name):
    images = _images()
    exact, rounded = (_small(name).clone(compute=FLOAT32._replace(dtype=d)) for d in (jnp.float32, jnp.bfloat16))
    variables = jax.tree.map(lambda leaf: 0.3 * leaf, _random_variables(rounded, images))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    outputs = [jax.jit(partial(model.apply, train=False))(variables, images) for model in (exact, rounded)]
    assert outputs[0].shape == (2, 5) and outputs[0].dtype == outputs[1].dtype == jnp.float32
    assert 0.0 < np.linalg.norm(outputs[0] - outputs[1]) / np.linalg.norm(outputs[0]) < 0.05


def test_an_untrained_network_guesses():
    model, images = _small("mixer_s16_224"), _images()
    logits, _ = jax.jit(partial(model.init_with_output, train=False))(jax.random.key(0), images)
    np.testing.assert_array_equal(logits, 0.0)


def test_images_that_are_not_whole_patches_name_the_cure():
    with pytest.raises(ValueError, match="8x12 are not whole patches of 5x5: use sides that are multiples of 5"):
        _shapes(_small("mixer_s16_224", patch_size=5), _images())
    with pytest.raises(ValueError, match="or a smaller patch_size"):
        _shapes(_small("mixer_s16_224", patch_size=16), _images())


@pytest.mark.parametrize(("name", "rate"), [(name, "drop_path") for name in KINDS] + [("mixer_s16_224", "dropout")])
def test_rates_act_in_training_alone(name, rate):
    model, images = _small(name, **{rate: 0.5}), _images(count=8)
    variables = _random_variables(model, images)
    apply = jax.jit(model.apply, static_argnames="train")
    drawn = [apply(variables, images, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    without = jax.jit(partial(model.clone(**{rate: 0.0}).apply, train=True))(variables, images)
    np.testing.assert_allclose(apply(variables, images, train=False), without, rtol=1e-4, atol=1e-3)
