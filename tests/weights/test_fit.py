"""Tensors of others go into a network once each, or are named."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.pretrained import COMPUTE, tensors_of

from linseed.models import MODELS, names
from linseed.trainer.errors import DataError
from linseed.trainer.weights.fit import fit, fits


def resnet(*, classes=10, channels=3):
    model = MODELS["resnet18"](num_classes=classes, compute=COMPUTE)
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    return model, jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)


@pytest.fixture(scope="module")
def tensors():
    return tensors_of("resnet18", classes=10)


def fitted(tensors, **how):
    model, shapes = resnet(**how)
    return fit(tensors, shapes, model=model, name="W"), flax.traverse_util.flatten_dict(shapes, sep="/")


def test_every_tensor_is_used_once_and_axes_are_ours(tensors):
    found, shapes = fitted(tensors)
    assert found.leaves.keys() == shapes.keys() and len(tensors) == len(shapes) and not found.notes
    kernel = found.leaves["params/stage2_block1/shortcut_conv/kernel"]
    assert np.array_equal(kernel, tensors["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0))
    assert np.array_equal(found.leaves["params/head/kernel"], tensors["fc.weight"].T)
    assert np.array_equal(found.leaves["batch_stats/stem/norm/var"], tensors["bn1.running_var"])


def test_the_counters_of_pytorch_are_no_weights(tensors):
    assert not fitted({**tensors, "bn1.num_batches_tracked": np.array(7)})[0].notes


def test_a_head_of_other_classes_is_new_and_said(tensors):
    found, shapes = fitted(tensors, classes=3)
    assert shapes.keys() - found.leaves.keys() == {"params/head/kernel", "params/head/bias"}
    assert found.notes == ["W has 10 classes and the data 3 classes: the last layer is new"]
    found, _ = fitted({name: values for name, values in tensors.items() if not name.startswith("fc.")})
    assert found.notes == ["W has no last layer and the data 10 classes: the last layer is new"]


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channels_get_the_same_answer_from_equal_ones(tensors, channels):
    found, _ = fitted(tensors, channels=channels)
    kernel, rgb = found.leaves["params/stem/conv/kernel"], tensors["conv1.weight"].transpose(2, 3, 1, 0)
    assert kernel.shape == (7, 7, channels, 64) and "adapted from 3 channels" in found.notes[0]
    if channels in (1, 6):
        np.testing.assert_allclose(kernel.sum(axis=2), rgb.sum(axis=2), rtol=1e-5, atol=1e-5)


def distilled(*, classes, size):
    model = MODELS["deit_tiny_distilled_patch16_224"](num_classes=classes, compute=COMPUTE)
    model = model.clone(patch_size=4, width=8, depth=1, heads=2)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return model, jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)


def test_a_distilled_network_gets_two_new_heads_and_positions_for_other_images():
    model, shapes = distilled(classes=10, size=8)
    given = {
        names.torch_name(path.partition("/")[2], model.torch_names): names.to_torch(
            path, np.ones(leaf.shape, np.float32)
        )
        for path, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()
    }
    model, shapes = distilled(classes=3, size=16)
    found = fit(given, shapes, model=model, name="W")
    missing = flax.traverse_util.flatten_dict(shapes, sep="/").keys() - found.leaves.keys()
    assert missing == {f"params/{head}/{leaf}" for head in ("head", "head_dist") for leaf in ("kernel", "bias")}
    assert found.leaves["params/stem/pos_embed"].shape == (1, 2 + 16, 8)
    assert [note.split(" ")[0] for note in found.notes] == ["pos_embed", "W"]


def test_what_differs_is_named(tensors):
    with pytest.raises(DataError, match=r"W has no layer1\.0\.conv1\.weight; choose"):
        fitted({name: values for name, values in tensors.items() if name != "layer1.0.conv1.weight"})
    with pytest.raises(DataError, match=r"has, beside those of this network, layer9\.weight; choose"):
        fitted({**tensors, "layer9.weight": np.zeros(3, np.float32)})
    with pytest.raises(DataError, match=r"has no layer1\S+, .* and \d+ more and has, beside those .*, other\.a"):
        fitted({f"other.{name}": values for name, values in zip("abcdefg", tensors.values(), strict=False)})
    with pytest.raises(DataError, match=r"bn1\.weight has the shape \(65,\), and params/stem/norm/scale here \(64,\)"):
        fitted({**tensors, "bn1.weight": np.ones(65, np.float32)})
    with pytest.raises(DataError, match=r"bn1\.bias holds NaN or infinity"):
        fitted({**tensors, "bn1.bias": np.full(64, np.nan, np.float32)})
    with pytest.raises(DataError, match=r"bn1\.bias holds int64, not weights"):
        fitted({**tensors, "bn1.bias": np.zeros(64, np.int64)})


def test_a_network_is_known_by_its_tensors(tensors):
    assert fits(tensors, "resnet18") and not fits(tensors, "resnet34")
    assert fits({**tensors, "fc.weight": np.zeros((3, 512), np.float32)}, "resnet18")  # whatever the classes
    assert not fits({**tensors, "bn1.weight": np.ones(65, np.float32)}, "resnet18")
