"""What the weights of others say of themselves, put into the config that starts from them."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from linseed.trainer.config.changes import changed
from linseed.trainer.config.sections import parameters
from linseed.trainer.errors import ConfigError
from linseed.trainer.weights.find import find

PRETRAINED = "pretrained"  # in `model.name` and `data.normalize`: as the weights say


def complete(config: ml_collections.ConfigDict, flags: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """`config` with `flags`, changes by dotted key, and with what it leaves to the weights of `config.pretrained`.

    Where `model.name` is "pretrained" it becomes the name of their network; where `data.normalize` is, `data.mean` and
    `data.std` become those that they were trained with, and the sizes and the interpolation of a source that has them,
    unless the page or a flag says them. A name on the hub is pinned to its commit. Raises ConfigError or DataError, one
    line.
    """
    name = flags.get(PRETRAINED, config.get(PRETRAINED, ""))
    asks = [key for key in ("model.name", "data.normalize") if _value(config, flags, key) == PRETRAINED]
    if not name:
        if asks:
            raise ConfigError(
                f"config.{asks[0]} is 'pretrained' and config.pretrained names no weights; add "
                "--config.pretrained=FILE, or a name on the hub such as timm/resnet50.a1_in1k"
            )
        return changed(config, flags)
    model = _value(config, flags, "model.name")
    card = find(str(name), architecture="" if model == PRETRAINED else str(model)).card
    said = {PRETRAINED: card.name}
    if "model.name" in asks:
        said["model.name"] = card.architecture
    if "data.normalize" in asks:
        said |= {"data.mean": card.input.mean, "data.std": card.input.std} | _sizes(config, flags, card.input)
    flags = {key: value for key, value in flags.items() if key != PRETRAINED and value != PRETRAINED}
    return changed(changed(config, said), flags)


def _value(config, flags, key):
    section, _, name = key.partition(".")
    return flags.get(key, config.get(section, {}).get(name))


def _sizes(config, flags, given) -> dict[str, Any]:
    """What the source's parameters say of size, where neither the page nor a flag says it."""
    source = flags.get("data.source.name", config.data.source.get("name"))
    sizes = {
        "image_size": given.size,
        "resize": round(given.size / given.crop),
        "interpolation": given.interpolation,
    }
    own = {key.rpartition(".")[2] for key in parameters("data.source", source)}
    stated = {*config.data.source, *(key.rpartition(".")[2] for key in flags if key.startswith("data.source."))}
    if "image_size" in stated:  # another size is cropped in the same share
        size = flags.get("data.source.image_size", config.data.source.get("image_size"))
        sizes["resize"] = round(size / given.crop) if isinstance(size, int) else sizes["resize"]
    return {f"data.source.{key}": value for key, value in sizes.items() if key in own - stated}
