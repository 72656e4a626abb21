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
    wanted = changed(config, flags)
    asks = [key for key in ("model.name", "data.normalize") if _value(wanted, key) == PRETRAINED]
    if not wanted.get(PRETRAINED):  # which a page of an earlier version has not
        if asks:
            raise ConfigError(
                f"config.{asks[0]} is 'pretrained' and config.pretrained names no weights; add "
                "--config.pretrained=FILE, or a name on the hub such as timm/resnet50.a1_in1k"
            )
        return wanted
    card = find(str(wanted.pretrained), architecture="" if "model.name" in asks else str(wanted.model.name)).card
    said = {PRETRAINED: card.name}
    if "model.name" in asks:
        said["model.name"] = card.architecture
    if "data.normalize" in asks:
        said |= {} if wanted.data.mean else {"data.mean": card.input.mean, "data.std": card.input.std}
        said |= _sizes(wanted.data.source, card.input)
    return changed(wanted, said)


def _value(config, key):
    section, _, name = key.partition(".")
    return config.get(section, {}).get(name)


def _sizes(source, given) -> dict[str, Any]:
    """What the parameters of `source` say of size, where neither the page nor a flag says it."""
    size = source.get("image_size", given.size)  # another size than the card's is cropped in the same share
    sizes = {
        "image_size": size,
        "resize": round(size / given.crop) if isinstance(size, int) else size,
        "interpolation": given.interpolation,
        "fit": given.fit,
    }
    own = {key.rpartition(".")[2] for key in parameters("data.source", source.name)}
    return {f"data.source.{key}": value for key, value in sizes.items() if key in own - {*source}}
