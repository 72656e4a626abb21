"""`examples.json`: the images that a person should look at, those that are most wrong and those least certain."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from linseed.trainer import checksum, files
from linseed.trainer.data.decode import shown, upright_size
from linseed.trainer.data.image_file import opened, quiet
from linseed.trainer.data.lazy import origin
from linseed.trainer.data.splits import Split
from linseed.trainer.report import thumbnails
from linseed.trainer.report.predictions import Predictions
from linseed.trainer.run import workdir

MOST = 12  # of each kind
MOST_SIZES = 2000  # originals whose size is read

_log = logging.getLogger(__name__)


def examples(found: Predictions, split: Split, *, saliency: Callable) -> dict[str, list[dict[str, Any]]]:
    """At most MOST `mistakes`, of the highest loss, and `uncertain` examples, of the least confidence in the answer.

    saliency: (images uint8 [MOST, H, W, C], classes int32 [MOST]) -> float32 [MOST, H, W]. Each example is a dict:
    classes `label`, `answer` and `second`, the runner-up; `confidence`, `second_confidence`; `loss`; `name`, of its
    file, "" where there is none; `picture` and, of a mistake, `where`, data URIs.
    """
    wrong = np.flatnonzero(~found.right)
    mistakes = wrong[np.argsort(-found.loss[wrong], kind="stable")][:MOST]
    uncertain = np.argsort(found.confidence, kind="stable")[:MOST]
    chosen = {"mistakes": mistakes, "uncertain": uncertain}
    images = {kind: split.images[found.index[some]] for kind, some in chosen.items()}
    listed = {
        kind: [_example(found, split, place, image) for place, image in zip(some, images[kind], strict=True)]
        for kind, some in chosen.items()
    }
    try:
        add_maps(listed["mistakes"], images["mistakes"], found.answer[mistakes], saliency=saliency)
    except Exception as error:  # a plugin's network may have no gradient
        _log.warning("the report has no maps of where the network looked: %s: %s", type(error).__name__, error)
    return listed


def with_sizes(found: Predictions, split: Split) -> Predictions:
    """`found` with width and height of the originals, upright, of at most MOST_SIZES examples, evenly spaced."""
    files_of = origin(split)
    if files_of is None:
        return found
    width, height = np.zeros_like(found.width), np.zeros_like(found.height)
    with quiet():
        for place in range(0, len(found.index), -(-len(found.index) // MOST_SIZES)):
            width[place], height[place] = _size(files_of.records, files_of.places[found.index[place]])
    return found._replace(width=width, height=height)


def write(path: Path, listed: dict[str, Any]):
    """Writes `listed`, JSON."""
    workdir.write_sealed(path, listed)


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; {} without a file, or for a damaged one."""
    return checksum.loads(files.read(path) or b"") or {}


def _example(found, split, place, image):
    files_of = origin(split)
    record = files_of and files_of.places[found.index[place]]
    return {
        "label": int(found.label[place]),
        "answer": int(found.answer[place]),
        "second": int(found.second[place]),
        "confidence": float(found.confidence[place]),
        "second_confidence": float(found.second_confidence[place]),
        "loss": float(found.loss[place]),
        "name": shown(files_of.records.name(record)) if files_of else "",
        "picture": thumbnails.picture(image),
    }


def add_maps(mistakes: list[dict[str, Any]], images: np.ndarray, answers: np.ndarray, *, saliency: Callable):
    """Adds `where` to each of `mistakes`."""
    if not mistakes:
        return
    places = np.arange(MOST) % len(mistakes)  # one program, however many mistakes there are
    maps = np.nan_to_num(np.asarray(saliency(images[places], answers[places])))
    for example, image, found in zip(mistakes, images, maps, strict=False):
        example["where"] = thumbnails.where(image, found)


def _size(records, record):
    """(width, height), (0, 0) where the header cannot be read."""
    try:
        with opened(records.open(record), decodes=False) as image:
            return upright_size(image)
    except Exception:  # a decoder may raise anything on damaged bytes
        return 0, 0
