"""Puts the tensors of others into a network of ours: every one is used once, or named in the error."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from linseed.models import INPUTS, MODELS
from linseed.models.layers import Compute, Input
from linseed.models.names import from_torch, torch_name
from linseed.trainer.errors import DataError

HEAD = "params/head/"  # the paths of the last layer begin so
_HEADS = (HEAD, "params/head_dist/")  # a distilled network has a second one
_COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm, which nothing reads
_SHOWN = 3
_CURE = "choose the network that it was trained as, with its own parameters"


class Fitted(NamedTuple):
    """leaves: the '/'-joined path of a variable -> its values. notes: a line for each change to the weights."""

    leaves: dict[str, np.ndarray]
    notes: list[str]


def fit(tensors: Mapping[str, np.ndarray], shapes: Any, *, model, name: str) -> Fitted:
    """`tensors` as variables of `model`, whose variables have `shapes`, a tree of arrays or their shapes.

    The last layer is left out where the number of classes differs. A first convolution for RGB is adapted to another
    number of channels, and a table of positions to another number of patches. name: of the weights, for messages.
    Raises DataError, one line, which names the tensors that are missing, left over, of another shape, or not finite.
    """
    wanted = flax.traverse_util.flatten_dict(shapes, sep="/")
    theirs = _their_names(wanted, tensors, model)
    head = {path for path in wanted if path.startswith(_HEADS)}
    given = {key: values for key, values in tensors.items() if not key.endswith(_COUNTER)}
    without_head = not any(theirs[path] in given for path in head)
    missing = [theirs[path] for path in wanted if theirs[path] not in given and not (without_head and path in head)]
    left = sorted(set(given) - set(theirs.values()))
    if missing or left:
        raise DataError(f"{name} {_difference(missing, left)}; choose the network that it was trained as")
    leaves, notes = {}, []
    for path, like in wanted.items():
        if path in head and without_head:
            continue
        values = from_torch(path, given[theirs[path]])
        if not np.issubdtype(np.asarray(values).dtype, np.floating) and values.dtype.name != "bfloat16":
            raise DataError(f"{name}: {theirs[path]} holds {values.dtype}, not weights; fetch the file again")
        values = np.asarray(values, np.float32)
        if values.shape != like.shape and path not in head:
            values = _adapted(path, values, like.shape, model=model, notes=notes)
            if values is None or values.shape != like.shape:
                there, here = (tuple(x.shape) for x in (given[theirs[path]], like))
                raise DataError(f"{name}: {theirs[path]} has the shape {there}, and {path} here {here}; {_CURE}")
        if not np.isfinite(values).all():
            raise DataError(f"{name}: {theirs[path]} holds NaN or infinity; fetch the file again")
        leaves[path] = values
    kernel = f"{HEAD}kernel"
    if without_head or leaves[kernel].shape != wanted[kernel].shape:
        was = "no last layer" if without_head else f"{leaves[kernel].shape[-1]:,} classes"
        leaves = {path: values for path, values in leaves.items() if path not in head}
        notes.append(f"{name} has {was} and the data {wanted[kernel].shape[-1]:,} classes: the last layer is new")
    return Fitted(leaves, notes)


def fits(tensors: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether `tensors` are those of the network `name`, in names and shapes, whatever its number of classes."""
    shapes, model = _shapes(name)
    wanted = flax.traverse_util.flatten_dict(shapes, sep="/")
    theirs = _their_names(wanted, tensors, model)
    if {key for key in tensors if not key.endswith(_COUNTER)} != set(theirs.values()):
        return False
    return all(
        from_torch(path, tensors[key]).shape == wanted[path].shape or path.startswith(_HEADS)
        for path, key in theirs.items()
    )


def _their_names(wanted, tensors, model) -> dict[str, str]:
    """The path of each variable -> its name in timm, or in the other place whose names `tensors` have more of."""
    places = [model.torch_names, *model.other_names]
    found = [{path: torch_name(path.partition("/")[2], rules) for path in wanted} for rules in places]
    return max(found, key=lambda theirs: len(set(theirs.values()) & set(tensors)))


def network(name: str):
    """The network `name` with its own parameters, for 1,000 classes."""
    return MODELS[name](num_classes=1000, compute=Compute(jnp.float32, None, jax.lax.conv_general_dilated))


@functools.cache
def _shapes(name: str):
    model = network(name)
    size = INPUTS.get(name, Input()).size  # a table of positions has the shape that images of this size give it
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images), model


def _difference(missing, left):
    """What tensors do not match, in words."""
    parts = [("has no", missing), ("has, beside those of this network,", left)]
    return " and ".join(f"{verb} {_few(names)}" for verb, names in parts if names)


def _few(names):
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _adapted(path, values, shape, *, model, notes):
    """The values for another number of channels or patches, or None."""
    leaf = path.rpartition("/")[2]
    resize = model.resized.get(leaf)
    if resize:
        notes.append(f"{leaf} is resized from {values.shape} to {tuple(shape)}: the images have another size")
        return resize(values, shape)
    if leaf == "kernel" and values.ndim == 4 and values.shape[2] == 3:
        notes.append(f"{path.partition('/')[2]} is adapted from 3 channels to {shape[2]}")
        return _for_channels(values, shape[2])
    return None


def _for_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A kernel [H, W, 3, O] for images of other channels: a grey image gives what RGB of equal channels gives.

    The sum over the three for one channel; for others the three in turn, scaled to the same sum.
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = kernel[:, :, np.arange(channels) % 3]
    return repeated * (3 / channels)
