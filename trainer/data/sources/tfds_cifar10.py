"""TFDS's own CIFAR builders, prepared without TensorFlow."""

from typing import Any

from PIL import Image

from linseed.trainer.data.sources import cifar_archive


def cifar_class(class_name: str) -> Any:
    """TFDS's own CIFAR builder `class_name`, prepared without TensorFlow."""
    from tensorflow_datasets.image_classification import cifar

    stock = getattr(cifar, class_name)

    class Cifar(stock, skip_registration=True):
        name = stock.name  # decides the folder and record order, so files are shared with the stock builder
        url_infos = stock.url_infos

        def _split_generators(self, dl_manager):
            layout = self._cifar_info
            wanted = (*layout.label_files, *layout.train_files, *layout.test_files)
            files = cifar_archive.read(dl_manager.download(layout.url), [layout.prefix + file for file in wanted])
            for key, file in zip(layout.label_keys, layout.label_files, strict=True):
                self.info.features[key].names = files[layout.prefix + file].decode().split()

            def examples(id_prefix, names):
                return self._generate_examples(id_prefix, [files[layout.prefix + name] for name in names])

            return {"train": examples("train_", layout.train_files), "test": examples("test_", layout.test_files)}

        def _generate_examples(self, split_prefix, filepaths):
            keys = self._cifar_info.label_keys
            records = (
                record for content in filepaths for record in cifar_archive.records(content, num_labels=len(keys))
            )
            for index, (labels, image) in enumerate(records):
                # PIL images, as TFDS encodes these itself, but arrays with TensorFlow.
                example = {"id": f"{split_prefix}{index:05d}", "image": Image.fromarray(image)}
                yield index, example | {key: int(label) for key, label in zip(keys, labels, strict=True)}

    return Cifar
