"""Weights that others trained, by a name on the hub or a file: their tensors, and the card that goes with them."""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from linseed.models import INPUTS, MODELS
from linseed.models.layers import Input
from linseed.trainer.data.decode import INTERPOLATIONS
from linseed.trainer.errors import DataError
from linseed.trainer.runtime.machine import memory_bytes
from linseed.trainer.weights import hub, pth
from linseed.trainer.weights.fit import fits, network

_FORMATS = (".safetensors", ".linseed", ".pth", ".pt", ".bin")

# The types of safetensors by their names there; its own reader for NumPy knows no bfloat16.
_TYPES = {
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    **{
        f"{sign}{bits}": np.dtype(f"{kind}{bits}")
        for sign, kind in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}

# In the metadata of a file of safetensors: the card of what `linseed export` wrote, as timm's config.json has it.
CARD_KEY = "linseed"

# How timm's cards call what is `Input.fit` here.
CROP_MODES = {"center": "crop", "squash": "stretch", "border": "pad"}

_MOST_ALIKE = 8  # names that are tried for a file whose own name names no network


@dataclasses.dataclass(frozen=True)
class Card:
    """Where weights come from, and what they expect.

    name: as a config can give it, with the commit where it is one of the hub. sha256: of the file. architecture: a name
    in MODELS. input: how the images were made that it was trained on. licence: as its publisher says, or "".
    """

    name: str
    sha256: str
    architecture: str
    input: Input
    licence: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"input": self.input._asdict()}


@dataclasses.dataclass(frozen=True)
class Weights:
    """tensors: by their names in timm."""

    tensors: Mapping[str, np.ndarray]
    card: Card


def find(name: str, *, architecture: str = "") -> Weights:
    """The weights called `name`: a file, or `OWNER/NAME` on the hub, perhaps with `@REVISION`.

    architecture: a name in MODELS; "" takes the one that the hub names, or that whose tensors a file holds. Raises
    DataError, one line, for what is not there, damaged, or of no network here.
    """
    path = Path(name).expanduser()
    if path.is_file():
        tensors, own = read(path), _own_card(path)
        architecture = architecture or own.get("architecture") or _architecture(tensors, path)
        given = _input(own.get("pretrained_cfg", {}), INPUTS.get(architecture, Input()))
        return Weights(tensors, Card(str(path), hub.sha256(path), architecture, given))
    if path.suffix in _FORMATS or not hub.NAME.fullmatch(name):
        raise DataError(
            f"no weights at {name}; give a file ({', '.join(_FORMATS)}), or a name on the hub such as "
            "timm/resnet50.a1_in1k"
        )
    fetched = hub.fetch(name)
    published = fetched.config["architecture"]
    if published not in MODELS:
        near = difflib.get_close_matches(published, MODELS, n=3)
        raise DataError(
            f"'{name}' is a {published}, which is not among the networks here"
            + (f"; near: {', '.join(near)}" if near else "; choose another name")
        )
    card = Card(
        f"{name.partition('@')[0]}@{fetched.commit}",
        fetched.sha256,
        architecture or published,
        _input(fetched.config.get("pretrained_cfg", {}), INPUTS.get(published, Input())),
        str(fetched.config.get("pretrained_cfg", {}).get("license", "")),
    )
    return Weights(read(fetched.path), card)


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file of safetensors or of `torch.save`, by name. Raises DataError, one line."""
    return tensors(content(path), path)


def content(path: Path) -> bytes:
    """The bytes of the file at `path`. Raises DataError, one line, if it cannot be read or held in memory."""
    try:
        size, most = path.stat().st_size, memory_bytes()
        if most is not None and size > most:
            raise DataError(
                f"{path} has {size / 1e9:,.0f} GB and this machine {most / 1e9:,.0f} GB of memory; use another"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from None


def tensors(data: bytes, path: Path) -> dict[str, np.ndarray]:
    """The tensors in `data`, the bytes of the file at `path`, as from `read`."""
    try:
        if data[8:9] != b"{" and pth.is_torch(data[:2]):  # a header's length, too, can begin as a pickle
            return pth.read(data)
        return {name: _array(**tensor) for name, tensor in deserialize(data)}
    except pth.DamagedWeights as error:
        raise DataError(f"{path} {error}") from None
    except pth.NotWeights as error:
        raise DataError(f"{path} {error}; {_conversion(path)}") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no whole file of safetensors ({type(error).__name__}); fetch it again, or check the path"
        ) from None


def _own_card(path: Path) -> dict[str, Any]:
    """What `linseed export` wrote into the file, {} for files of others."""
    try:
        with safe_open(path, framework="numpy") as file:
            card = json.loads((file.metadata() or {}).get(CARD_KEY, "{}"))
    except (SafetensorError, ValueError):
        return {}
    return card if isinstance(card, dict) and card.get("architecture") in MODELS else {}


def _array(*, dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    return np.frombuffer(data, _TYPES[dtype]).reshape(shape)


def _conversion(path: Path) -> str:
    """What turns a file of torch into one that is read, where torch is and its reader takes the file."""
    code = (
        "import sys, torch, safetensors.torch as s; a, b = sys.argv[1:]; "
        "s.save_file({k: v.contiguous() for k, v in torch.load(a, weights_only=True).items()}, b)"
    )
    return f'or, with torch: python -c "{code}" {path} {path.with_suffix(".safetensors")}'


def _input(published: Mapping[str, Any], default: Input) -> Input:
    """How images are made, as a card of timm says it; `default` where it does not."""
    try:
        return Input(
            size=int(published.get("input_size", (3, default.size, default.size))[-1]),
            crop=float(published.get("crop_pct", default.crop)),
            interpolation=_interpolation(published.get("interpolation", default.interpolation)),
            fit=CROP_MODES.get(published.get("crop_mode"), default.fit),
            mean=tuple(map(float, published.get("mean", default.mean))),
            std=tuple(map(float, published.get("std", default.std))),
        )
    except (TypeError, ValueError, IndexError):
        raise DataError("the card of these weights says no sizes or statistics that can be read") from None


def _interpolation(name: str) -> str:
    return name if name in INTERPOLATIONS else Input().interpolation


def _architecture(tensors: Mapping[str, np.ndarray], path: Path) -> str:
    """The network whose tensors these are, among those that the file's name suggests.

    Raises DataError where none of them fits, or several that compute differently and the file's name names none.
    """
    stem = re.sub(r"[^a-z0-9]+", "_", path.stem.lower())
    known = [name for name, model in MODELS.items() if _class(model).torch_names]
    named = sorted((name for name in known if name in stem), key=len, reverse=True)
    variants = [name for name in known if any(_is_variant(name, other) for other in named[:1])]
    alike = difflib.get_close_matches(stem, known, n=_MOST_ALIKE, cutoff=0.0)
    candidates = list(dict.fromkeys((*named, *variants, *alike)))
    found = next((name for name in candidates if fits(tensors, name)), None)
    if found is None:
        raise DataError(
            f"{path} holds the tensors ({next(iter(tensors))} ...) of no network that its name suggests, such as "
            f"{', '.join(candidates[:3])}; say which it is: --config.model.name=NAME, a name of timm"
        )
    twins = [name for name in known if _is_variant(name, found) and fits(tensors, name)]
    twins = [name for name in twins if network(name) != network(found)]
    if twins and found not in named:
        names = " and of ".join((found, *twins))
        raise DataError(f"{path} may be of {names}; say which it is: --config.model.name={found}")
    return found


def _is_variant(name: str, other: str) -> bool:
    """Whether one name is the other and a word more, as tf_efficientnet_b0 and efficientnet_b0."""
    words = [set(each.split("_")) for each in (name, other)]
    return name != other and (words[0] <= words[1] or words[1] <= words[0])


def _class(model):
    while hasattr(model, "func"):
        model = model.func
    return model
