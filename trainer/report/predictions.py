"""`predictions.safetensors`: what a finished run answered to each image of validation and, once opened, of test."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from linseed.trainer import files
from linseed.trainer.step.calibration import log_softmax, temperature

MOST_LOGITS = 2**24  # numbers that are kept in memory, to fit a temperature and apply it

_TEMPERATURE = "temperature"


class Predictions(NamedTuple):
    """Arrays [N] over the examples of a split, without bad images that were skipped.

    index: the example's place in the split. label, answer, second: classes, of which `second` is the runner-up.
    confidence, second_confidence: their softmax probabilities. loss: -log of the label's, in nats. scaled_confidence,
    scaled_loss: after temperature scaling; NaN for examples left out of it. brightness: the mean pixel, 0..255. width,
    height: of the original, 0 where it is not known.
    """

    index: np.ndarray
    label: np.ndarray
    answer: np.ndarray
    second: np.ndarray
    confidence: np.ndarray
    second_confidence: np.ndarray
    loss: np.ndarray
    scaled_confidence: np.ndarray
    scaled_loss: np.ndarray
    brightness: np.ndarray
    width: np.ndarray
    height: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """bool [N]."""
        return self.answer == self.label


class Collector:
    """Makes the predictions of a split out of the batches of its evaluation.

    examples: of the split. Where they have more than MOST_LOGITS logits, every k-th of them has part in the scaling.
    """

    def __init__(self, *, examples: int):
        self._examples, self._start = examples, 0
        self._parts, self._logits, self._error = [], [], None

    def add(self, batch: dict[str, Any]):
        """Takes the examples of the next batch, host arrays of `make_eval_step`. An error waits until the end."""
        if self._error is None:
            try:
                self._add(batch)
            except Exception as error:
                self._error = error

    @functools.cached_property
    def temperature(self) -> float:
        """The one that fits these examples best, see `calibration.temperature`."""
        found, chosen, logits = self._joined()
        return temperature(logits, found.label[chosen])

    def predictions(self, *, temperature: float) -> Predictions:
        """The predictions, scaled by `temperature`."""
        found, chosen, logits = self._joined()
        scaled = log_softmax(logits / temperature)
        found.scaled_confidence[chosen] = np.exp(scaled.max(axis=1))
        found.scaled_loss[chosen] = -_of(scaled, found.label[chosen])
        return found

    def _joined(self):
        """The predictions, not scaled yet, which of them have part in the scaling, and the logits of these."""
        if self._error is not None:
            raise self._error
        found = Predictions(*map(np.concatenate, zip(*self._parts, strict=True)))
        logits = np.concatenate(self._logits)
        return found, self._is_scaled(found.index, classes=logits.shape[1]), logits

    def _add(self, batch):
        rows = np.flatnonzero(batch["mask"] > 0)
        logits, labels, index = batch["logits"][rows], batch["label"][rows], self._start + rows
        self._parts.append(_reduced(logits, labels, index=index, brightness=batch["brightness"][rows]))
        self._logits.append(logits[self._is_scaled(index, classes=logits.shape[1])])
        self._start += len(batch["mask"])

    def _is_scaled(self, index, *, classes):
        return index % -(-self._examples * classes // MOST_LOGITS) == 0


def write(path: Path, splits: dict[str, Predictions], *, temperature: float):
    """Writes the predictions of each split."""
    arrays = {f"{name}.{key}": array for name, split in splits.items() for key, array in split._asdict().items()}
    files.write(path, safetensors.numpy.save({**arrays, _TEMPERATURE: np.array([temperature], np.float64)}))


def read(path: Path) -> tuple[dict[str, Predictions], float]:
    """What `write` wrote; ({}, nan) without a file. Raises SafetensorError or another exception for a damaged one."""
    content = files.read(path)
    if content is None:
        return {}, float("nan")
    arrays = safetensors.numpy.load(content)
    temperature = float(arrays.pop(_TEMPERATURE)[0])
    names = dict.fromkeys(key.partition(".")[0] for key in arrays)
    splits = {name: Predictions(**{key: arrays[f"{name}.{key}"] for key in Predictions._fields}) for name in names}
    return splits, temperature


def _reduced(logits, labels, *, index, brightness):
    logs = log_softmax(logits)
    answer = logits.argmax(axis=1)
    others = logits.copy()
    others[np.arange(len(others)), answer] = -np.inf
    second = others.argmax(axis=1)
    missing, unknown = np.full(len(labels), np.nan, np.float32), np.zeros(len(labels), np.int32)
    return Predictions(
        index=index.astype(np.int32),
        label=labels.astype(np.int32),
        answer=answer.astype(np.int32),
        second=second.astype(np.int32),
        confidence=np.exp(_of(logs, answer)).astype(np.float32),
        second_confidence=np.exp(_of(logs, second)).astype(np.float32),
        loss=-_of(logs, labels).astype(np.float32),
        scaled_confidence=missing,
        scaled_loss=missing,
        brightness=brightness.astype(np.float32),
        width=unknown,
        height=unknown,
    )


def _of(values, classes):
    return values[np.arange(len(values)), classes]
