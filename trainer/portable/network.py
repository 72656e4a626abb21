"""The network of a model file: built from its config, with the tensors of the file in their places."""

import functools
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from linseed.models import MODELS
from linseed.models.names import from_torch, torch_name
from linseed.trainer import programs
from linseed.trainer.config import plugins
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import ConfigError

# What of a config a network computes by; the rest may be of a plugin or a version that is not here.
_USED = ("model", "precision", "convolution")

# Calls of modules for each tensor of the file, at most: a config of a billion layers would be built for days.
_MOST_CALLS_PER_TENSOR = 64


def config_of(card: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The parts of the config in a card by which its network computes, the rest as by default.

    Raises ConfigError for a network of a plugin that is not loaded, and for parameters that it does not take here.
    """
    config = card["config"]
    if config["model"]["name"] not in MODELS:
        plugins.check_loaded(config.get("plugins", ()))
    return resolve({**{key: config[key] for key in _USED}, "eval": {"views": config["eval"]["views"]}})


def build(
    config: ml_collections.ConfigDict, tensors: Mapping[str, np.ndarray], *, classes: int, image_shape
) -> tuple[Any, dict[str, Any]]:
    """The network of `config`, and its weights, {"params", "model_state"}, in their own types.

    tensors: of `weights.export.tensors_of`. image_shape: (H, W, C). No memory is taken for arrays that the file does
    not hold. Raises ConfigError where network and tensors do not fit.
    """
    model = programs.make_model(config, classes=classes)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    calls = iter(range(_MOST_CALLS_PER_TENSOR * (len(tensors) + 1)))

    def counted(call, args, kwargs, context):
        if next(calls, None) is None:
            raise ConfigError("the network has more layers than the file has weights; export it again")
        return call(*args, **kwargs)

    try:
        with nn.intercept_methods(counted):
            shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    except ConfigError:
        raise
    except Exception as error:  # a network may raise anything for sizes that it does not take
        raise ConfigError(f"its network cannot be built ({type(error).__name__}: {error})") from None
    wanted = flax.traverse_util.flatten_dict(shapes, sep="/")
    names = {path: torch_name(path.partition("/")[2], model.torch_names) for path in wanted}
    if set(names.values()) != set(tensors):
        odd = min(set(names.values()) ^ set(tensors))
        raise ConfigError(f"the network '{config.model.name}' has other arrays here, such as {odd}; {_cure()}")
    leaves = {}
    for path, like in wanted.items():
        values = from_torch(path, tensors[names[path]])
        values = values.reshape(()) if not like.shape and values.size == 1 else values  # which a file holds as [1]
        if (values.shape, values.dtype) != (like.shape, like.dtype):
            raise ConfigError(
                f"{path} is {values.dtype} {list(values.shape)} in the file, and {like.dtype} {list(like.shape)} in "
                f"the network '{config.model.name}' here; {_cure()}"
            )
        leaves[path] = values
    model_state = flax.traverse_util.unflatten_dict(leaves, sep="/")
    return model, {"params": model_state.pop("params"), "model_state": model_state}


def _cure():
    return "use the version of Linseed, and of its plugins, that wrote the file"
