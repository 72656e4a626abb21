import sys
import tarfile

import numpy as np
import pytest
import requests
from PIL import Image
from support.cifar_archive import CIFAR10_NAMES, CIFAR100_NAMES, FILES, offer_cifar, random_cifar

from linseed.trainer.data.sources import cifar_archive
from linseed.trainer.data.sources import tfds as tfds_module
from linseed.trainer.data.sources.folder import folder
from linseed.trainer.data.sources.tfds import tfds
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import DataError

library = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every request fails at once, as on a machine without a network."""
    asked = []

    def refuse(self, method, url, **settings):
        asked.append(url)
        raise requests.exceptions.ConnectionError("no network")

    monkeypatch.setattr(requests.Session, "request", refuse)
    return asked


def read(data_dir, *, dataset="cifar10", train_split="train", test_split="test"):
    return tfds(dataset=dataset, data_dir=str(data_dir), train_split=train_split, test_split=test_split)


def error_of(call):
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700, message
    return message


def as_packed(split, data_dir, *, dataset, name):
    """`split` put back into the order of the archive, which TFDS shuffles; the record's id holds the place."""
    builder = library.builder_from_directory(next((data_dir / dataset).iterdir()))
    ids = [example["id"].decode() for example in builder.as_data_source(name)]
    assert all(id.startswith(f"{name}_") for id in ids)
    place = np.argsort([int(id.removeprefix(f"{name}_")) for id in ids])
    return Split(split.images[place], split.labels[place])


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


# CIFAR without TensorFlow.


@pytest.mark.parametrize("dataset, names", [("cifar10", CIFAR10_NAMES), ("cifar100", CIFAR100_NAMES)])
def test_cifar_gives_the_pixels_labels_and_names_of_the_archive(tmp_path, monkeypatch, no_network, dataset, names):
    packed = random_cifar(num_train=150, num_test=50, num_classes=len(names))
    offer_cifar(tmp_path, monkeypatch, name=dataset, **packed)
    source = read(tmp_path, dataset=dataset)
    assert source.class_names == names and source.val is None and source.skipped == ()
    assert_equal(as_packed(source.train, tmp_path, dataset=dataset, name="train"), packed["train"])
    assert_equal(as_packed(source.open_test(), tmp_path, dataset=dataset, name="test"), packed["test"])
    assert "tensorflow" not in sys.modules and no_network == []


def test_the_order_is_the_one_of_the_stock_builder(tmp_path, monkeypatch):
    # TFDS orders by a hash of the record's key, salted with the name of the split.
    from tensorflow_datasets.core import hashing

    packed = random_cifar(num_train=50, num_test=10)
    offer_cifar(tmp_path, monkeypatch, name="cifar10", **packed)
    order = sorted(range(50), key=hashing.Hasher("train").hash_key)
    assert_equal(read(tmp_path).train, Split(packed["train"].images[order], packed["train"].labels[order]))


def test_prepared_data_is_read_without_its_archive(tmp_path, monkeypatch, no_network):
    offer_cifar(tmp_path, monkeypatch, name="cifar10", **random_cifar(num_train=20, num_test=10))
    first = read(tmp_path)
    (tmp_path / "downloads" / "manual" / FILES["cifar10"]).unlink()
    assert_equal(read(tmp_path).train, first.train)
    assert no_network == []


def test_a_dataset_that_somebody_else_prepared_is_read(tmp_path, monkeypatch):
    offer_cifar(tmp_path, monkeypatch, name="cifar10", **random_cifar(num_train=20, num_test=10))
    expected = read(tmp_path)
    monkeypatch.setattr(tfds_module, "_CIFAR", {})  # Through the stock builder.
    monkeypatch.setattr(tfds_module, "_prepare", None)
    for dataset in ("cifar10", "cifar10:3.0.2"):
        assert_equal(read(tmp_path, dataset=dataset).train, expected.train)


def test_nothing_is_printed_to_stdout(tmp_path, monkeypatch, capsys):
    offer_cifar(tmp_path, monkeypatch, name="cifar10", **random_cifar(num_train=20, num_test=10))
    read(tmp_path).open_test()
    assert capsys.readouterr().out == ""


def test_the_stock_builder_stays_registered(tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import cifar

    offer_cifar(tmp_path, monkeypatch, name="cifar10", **random_cifar(num_train=20, num_test=10))
    read(tmp_path)
    assert library.builder_cls("cifar10") is cifar.Cifar10


def test_parts_of_splits_are_read(tmp_path, monkeypatch):
    offer_cifar(tmp_path, monkeypatch, name="cifar10", **random_cifar(num_train=40, num_test=10))
    whole = read(tmp_path).train
    source = read(tmp_path, train_split="train[:75%]", test_split="train[75%:]")
    assert_equal(source.train, Split(whole.images[:30], whole.labels[:30]))
    assert_equal(source.open_test(), Split(whole.images[30:], whole.labels[30:]))


# The archive and class folders of the same images.


def test_tfds_and_class_folders_of_jpegs_give_the_same_pixels(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in CIFAR10_NAMES:
            (tmp_path / "jpeg" / split / name).mkdir(parents=True)
            for i in range(count):
                small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                small.resize((32, 32)).save(tmp_path / "jpeg" / split / name / f"{i:04}.jpg")
    root, data_dir = str(tmp_path / "jpeg"), tmp_path / "tfds"
    source = folder(root=root, image_size=0, test_fraction=0.5, split_seed=0, on_bad_image="error")
    test = source.open_test()
    offer_cifar(data_dir, monkeypatch, name="cifar10", train=source.train, test=test)
    found = read(data_dir)
    assert found.class_names == source.class_names
    assert_equal(as_packed(found.train, data_dir, dataset="cifar10", name="train"), source.train)
    assert_equal(as_packed(found.open_test(), data_dir, dataset="cifar10", name="test"), test)


# What can be wrong.


def test_no_archive_and_no_network_names_where_to_put_it(tmp_path, no_network):
    message = error_of(lambda: read(tmp_path))
    assert str(tmp_path / "downloads" / "manual") in message and "cifar-10-binary.tar.gz" in message
    assert ":root=DIR" in message
    assert len(no_network) == 1  # Asked once: TFDS itself would try for minutes.


def test_an_archive_with_a_wrong_checksum_is_refused(tmp_path):
    path = tmp_path / "downloads" / "manual" / FILES["cifar10"]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not the official archive")
    message = error_of(lambda: read(tmp_path))
    assert "wrong checksum" in message and str(tmp_path) in message
    assert not list(tmp_path.glob("cifar10/3*"))


def test_an_archive_without_its_files_is_refused(tmp_path, monkeypatch):
    packed = random_cifar(num_train=20, num_test=10)
    offer_cifar(tmp_path, monkeypatch, name="cifar10", layout="cifar100", **packed)
    assert "holds no cifar-10-batches-bin/batches.meta.txt" in error_of(lambda: read(tmp_path))


def test_links_in_an_archive_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("x")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(link)
    with pytest.raises(DataError, match="holds no x"):
        cifar_archive.read(tmp_path / "a.tar.gz", ["x"])


def test_an_unknown_dataset_names_the_nearest(tmp_path):
    assert "did you mean 'cifar10'?" in error_of(lambda: read(tmp_path, dataset="cifra10"))


def test_a_dataset_that_needs_tensorflow_says_so(tmp_path, monkeypatch):
    # Past the download, the stock builder calls TensorFlow.
    monkeypatch.setattr(tfds_module, "_CIFAR", {})
    offer_cifar(tmp_path, monkeypatch, name="cifar10", **random_cifar(num_train=20, num_test=10))
    message = error_of(lambda: read(tmp_path))
    assert "TensorFlow is installed" in message and "file_format=array_record" in message


@pytest.mark.parametrize("setting", ["train_split", "test_split"])
@pytest.mark.parametrize("split", ["validation", "train[", "train[:0]"])
def test_a_split_that_is_not_there_is_found_at_once(tmp_path, monkeypatch, setting, split):
    offer_cifar(tmp_path, monkeypatch, name="cifar10", **random_cifar(num_train=20, num_test=10))
    message = error_of(lambda: read(tmp_path, **{setting: split}))
    assert split in message and setting in message


@pytest.mark.parametrize("train_split, test_split", [("train", "train"), ("train", "train[90%:]"), ("all", "test")])
def test_splits_that_share_examples_are_refused(tmp_path, monkeypatch, train_split, test_split):
    offer_cifar(tmp_path, monkeypatch, name="cifar10", **random_cifar(num_train=20, num_test=10))
    message = error_of(lambda: read(tmp_path, train_split=train_split, test_split=test_split))
    assert "share examples" in message


def test_damaged_files_are_an_error(tmp_path, monkeypatch):
    offer_cifar(tmp_path, monkeypatch, name="cifar10", **random_cifar(num_train=20, num_test=10))
    source = read(tmp_path)
    (file,) = tmp_path.glob("cifar10/*/*test*")
    file.write_bytes(b"\0" * file.stat().st_size)
    assert str(tmp_path / "cifar10") in error_of(source.open_test)


# Other data sets, prepared here from PIL images by a builder of the test's own.


def prepare(data_dir, *, name, features, examples, supervised_keys=("image", "label"), file_format="array_record"):
    def info(self):
        keys = supervised_keys and tuple(supervised_keys)
        return library.core.DatasetInfo(
            builder=self, features=library.features.FeaturesDict(features), supervised_keys=keys
        )

    def split_generators(self, dl_manager):
        return {"train": enumerate(examples), "test": enumerate(examples)}

    members = dict(
        VERSION=library.core.Version("1.0.0"),
        name=name,
        _info=info,
        _split_generators=split_generators,
        _generate_examples=None,
        __module__=__name__,
    )
    builder = type(name, (library.core.GeneratorBasedBuilder,), members, skip_registration=True)
    builder(data_dir=data_dir).download_and_prepare(
        file_format=file_format, download_config=library.download.DownloadConfig(try_download_gcs=False)
    )


def grey_examples(*sizes):
    return [{"image": Image.fromarray(np.full(size, i, np.uint8)), "label": i % 2} for i, size in enumerate(sizes)]


GREY = {
    "image": library.features.Image(shape=(None, None, 1)),
    "label": library.features.ClassLabel(names=["even", "odd"]),
}


@pytest.mark.parametrize("supervised_keys", [("image", "label"), None])
def test_any_prepared_dataset_is_found_by_name(tmp_path, supervised_keys):
    prepare(
        tmp_path, name="mine", features=GREY, examples=grey_examples(*[(5, 7)] * 6), supervised_keys=supervised_keys
    )
    source = read(tmp_path, dataset="mine")
    assert source.class_names == ("even", "odd") and source.train.images.shape == (6, 5, 7, 1)
    assert sorted(source.train.images[:, 0, 0, 0]) == list(range(6))
    np.testing.assert_array_equal(source.train.images[:, 0, 0, 0] % 2, source.train.labels)


def test_images_of_different_sizes_are_refused(tmp_path):
    prepare(tmp_path, name="mixed", features=GREY, examples=grey_examples((5, 7), (7, 5)))
    message = error_of(lambda: read(tmp_path, dataset="mixed"))
    assert "different sizes" in message and "image_size" in message


def test_a_dataset_without_a_label_is_refused(tmp_path):
    examples = [{"image": example["image"]} for example in grey_examples((4, 4), (4, 4))]
    prepare(tmp_path, name="bare", features={"image": GREY["image"]}, examples=examples, supervised_keys=None)
    assert "not image classification" in error_of(lambda: read(tmp_path, dataset="bare"))


def test_examples_without_a_label_are_refused(tmp_path):
    examples = [example | {"label": -1} for example in grey_examples((4, 4), (4, 4))]
    prepare(tmp_path, name="blank", features=GREY, examples=examples)
    assert "without a label" in error_of(lambda: read(tmp_path, dataset="blank"))


def test_a_dataset_in_another_file_format_says_how_to_prepare_it(tmp_path):
    prepare(tmp_path, name="mine", features=GREY, examples=grey_examples((4, 4), (4, 4)))
    info = next(tmp_path.glob("mine/*/dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    message = error_of(lambda: read(tmp_path, dataset="mine"))
    assert "not array_record" in message and "file_format=array_record" in message


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "pip install tensorflow-datasets" in error_of(lambda: read(tmp_path))
