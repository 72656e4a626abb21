"""Small archives in the official layout of CIFAR, offered to TFDS as if they were the real ones."""

import io
import tarfile

import numpy as np

from linseed.trainer.data.splits import Split

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_NAMES = tuple(f"fine{i:02}" for i in range(100))
COARSE_NAMES = tuple(f"coarse{i:02}" for i in range(20))
FILES = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}


def random_cifar(*, num_train, num_test, num_classes=10, seed=0):
    """`train` and `test` Splits of noise, 32x32x3, every class in train when num_train >= num_classes."""
    rng = np.random.default_rng(seed)
    return {
        name: Split(
            rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
            (rng.permutation(count) % num_classes).astype(np.int32),
        )
        for name, count in (("train", num_train), ("test", num_test))
    }


def records(split, *, coarse=False):
    """The bytes of a .bin file: (coarse label,) label, and the red, green and blue planes of each image."""
    planes = split.images.transpose(0, 3, 1, 2).reshape(len(split.labels), -1)
    labels = split.labels[:, np.newaxis].astype(np.uint8)
    return np.concatenate(([labels // 5] if coarse else []) + [labels, planes], axis=1).tobytes()


def write_archive(path, *, name, train, test):
    """Writes `train` and `test` to `path` in the layout of `name` ("cifar10" or "cifar100")."""
    if name == "cifar10":
        folder = "cifar-10-batches-bin/"
        cuts = np.array_split(np.arange(len(train.labels)), 5)
        files = {
            f"data_batch_{i + 1}.bin": records(Split(train.images[cut], train.labels[cut]))
            for i, cut in enumerate(cuts)
        }
        files |= {"test_batch.bin": records(test), "batches.meta.txt": "\n".join(CIFAR10_NAMES).encode() + b"\n\n"}
    else:
        folder = "cifar-100-binary/"
        files = {"train.bin": records(train, coarse=True), "test.bin": records(test, coarse=True)}
        files["fine_label_names.txt"] = "\n".join(CIFAR100_NAMES).encode() + b"\n"
        files["coarse_label_names.txt"] = "\n".join(COARSE_NAMES).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for file, content in files.items():
            entry = tarfile.TarInfo(folder + file)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def offer_cifar(data_dir, monkeypatch, *, name, train, test, layout=None):
    """Puts such an archive where a user puts the official one, and makes TFDS take its checksum for official.

    `layout`, where given, is the data set in whose layout the archive of `name` wrongly is.
    """
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import cifar

    path = data_dir / "downloads" / "manual" / FILES[name]
    write_archive(path, name=layout or name, train=train, test=test)
    stock = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]
    (url,) = stock.url_infos
    monkeypatch.setattr(stock, "url_infos", {url: checksums.compute_url_info(path)})
