"""CIFAR as TFDS prepares it, without TensorFlow."""

import os
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from trainer.errors import DataError

# `tensorflow_datasets` is imported where it is used: it is slow to import, and the other sources do without it.


def cifar_class(class_name: str) -> Any:
    """TFDS's own CIFAR builder `class_name`, with TensorFlow taken out of its preparation."""
    from tensorflow_datasets.image_classification import cifar

    stock = getattr(cifar, class_name)

    class Cifar(stock, skip_registration=True):
        name = stock.name  # Decides the folder and the record order, so files are shared with the stock builder.
        url_infos = stock.url_infos

        def _split_generators(self, dl_manager):
            layout = self._cifar_info
            wanted = (*layout.label_files, *layout.train_files, *layout.test_files)
            files = read_archive(dl_manager.download(layout.url), [layout.prefix + file for file in wanted])
            for key, file in zip(layout.label_keys, layout.label_files, strict=True):
                self.info.features[key].names = files[layout.prefix + file].decode().split()

            def examples(id_prefix, names):
                return self._generate_examples(id_prefix, [files[layout.prefix + name] for name in names])

            return {"train": examples("train_", layout.train_files), "test": examples("test_", layout.test_files)}

        def _generate_examples(self, split_prefix, filepaths):
            keys = self._cifar_info.label_keys
            records = (record for content in filepaths for record in _cifar_records(content, num_labels=len(keys)))
            for index, (labels, image) in enumerate(records):
                # PIL images, because TFDS encodes these itself and arrays with TensorFlow.
                example = {"id": f"{split_prefix}{index:05d}", "image": Image.fromarray(image)}
                yield index, example | {key: int(label) for key, label in zip(keys, labels, strict=True)}

    return Cifar


def read_archive(path: os.PathLike, names: list[str]) -> dict[str, bytes]:
    """The contents of the regular files `names` of a .tar.gz; nothing is written to disk."""
    with tarfile.open(path, "r:gz") as archive:
        files = {
            member.name: archive.extractfile(member).read()
            for member in archive
            if member.isreg() and member.name in names
        }
    missing = sorted(set(names) - files.keys())
    if missing:
        raise DataError(f"{path} holds no {missing[0]}; delete it, and download the official archive")
    return files


def _cifar_records(content: bytes, *, num_labels: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The records of a CIFAR .bin file: labels uint8 [num_labels], image uint8 [32, 32, 3].

    A record is the label bytes and then the red, the green and the blue plane.
    """
    records = np.frombuffer(content, np.uint8).reshape(-1, num_labels + 3 * 32 * 32)
    for record in records:
        planes = record[num_labels:].reshape(3, 32, 32)
        yield record[:num_labels], np.ascontiguousarray(planes.transpose(1, 2, 0))
