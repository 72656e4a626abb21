"""Looks at some training images before training, for what is read otherwise than their owner may expect."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from linseed.trainer.data.decode import BACKGROUNDS, Conversion, deep_values, is_deep, shown
from linseed.trainer.data.image_file import opened, quiet
from linseed.trainer.data.lazy import Records
from linseed.trainer.runtime.machine import cores

SAMPLE = 256  # images whose headers are read
_MOST_DEEP = 32  # 16-bit images whose pixels are read

_LEAST_KEPT = 0.75  # what a photo of 4:3 keeps


class _Facts(NamedTuple):
    """Of one image. kept: the share of its pixels that lie in its centre square."""

    record: int
    kept: float
    has_alpha: bool
    is_animated: bool
    is_deep: bool


def notes(records: Records, *, conversion: Conversion, makes_square: bool) -> tuple[str, ...]:
    """A line for each kind of surprise: the share of images that it concerns, and the key that changes it.

    records: the training images, of which at most `SAMPLE` are looked at, drawn with a fixed seed. makes_square:
    whether `conversion.fit` is used. Bad images are passed over: decoding reports them.
    """
    some = np.sort(np.random.default_rng(0).permutation(len(records))[:SAMPLE])
    with quiet(), ThreadPoolExecutor(cores()) as pool:
        found = [facts for facts in pool.map(lambda record: _look(records, record, _facts), some) if facts]
        deep = [facts.record for facts in found if facts.is_deep][:_MOST_DEEP]
        top = max(filter(None, pool.map(lambda record: _look(records, record, _top), deep)), default=0)
    return tuple(_lines(found, records, top=top, conversion=conversion, makes_square=makes_square))


def _look(records, record, judge):
    """`judge(image, record)`, or None for a bad image."""
    try:
        with opened(records.open(record), decodes=judge is _top) as image:
            return judge(image, record)
    except Exception:  # a decoder may raise anything on damaged bytes
        return None


def _facts(image: Image.Image, record: int) -> _Facts:
    return _Facts(
        record=record,
        kept=min(image.size) / max(image.size),
        has_alpha=image.has_transparency_data,
        is_animated=image.format != "MPO" and getattr(image, "is_animated", False),  # MPO: a photo and its previews
        is_deep=is_deep(image),
    )


def _top(image, record):
    return int(deep_values(image).max())


def _lines(found, records, *, top, conversion, makes_square) -> Iterator[str]:
    def share(kind):
        concerned = sum(map(kind, found))
        return concerned and f"{concerned} of {len(found)} training images looked at ({concerned / len(found):.0%})"

    bits = max(8, top.bit_length())
    if top and bits < conversion.bits:
        yield (
            f"{share(lambda facts: facts.is_deep)} have 16 bits, of which their values use {bits} (up to {top}) and"
            f" come out dark; --config.data.source.bits={bits} brightens them"
        )
    if which := share(lambda facts: facts.has_alpha):
        others = " or ".join(name for name in BACKGROUNDS if name != conversion.background)
        yield (
            f"{which} have transparency and are laid on {conversion.background};"
            f" --config.data.source.background={others} lays them on another"
        )
    if which := share(lambda facts: facts.is_animated):
        yield f"{which} are animations: the first frame alone is used; save others that you need as files of their own"
    if makes_square and conversion.fit == "crop" and (which := share(lambda facts: facts.kept < _LEAST_KEPT)):
        least = min(found, key=lambda facts: facts.kept)
        yield (
            f"{which} lose over a quarter of their pixels to the centre square, {shown(records.name(least.record))}"
            f" keeps {least.kept:.0%}; --config.data.source.fit=pad or stretch keeps all"
        )
