import functools
import inspect
import io
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import scipy.fft
from PIL import Image
from support.cifar_archive import offer_cifar, random_cifar

from linseed.trainer.config.resolve import resolve
from linseed.trainer.data import sources, splits
from linseed.trainer.data.sources import SOURCES, load
from linseed.trainer.errors import ConfigError, DataError

# One way to call each source, and one way to spoil its test split. Each takes a
# fresh folder (and pytest's monkeypatch) and returns settings or nothing.


def write_folder(root):
    rng = np.random.default_rng(0)
    for name in ("train", "val", "test"):
        for label in ("cat", "dog"):
            (root / name / label).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / label / f"{i}.png")


def folder_settings(root, monkeypatch):
    write_folder(root)
    return dict(root=str(root), image_size=0, test_fraction=0.2, split_seed=0, on_bad_image="error")


def spoil_folder(root, monkeypatch):
    (root / "test" / "cat" / "0.png").write_text("not an image")


def npz_arrays():
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 20), ("val", 6), ("test", 8)):
        arrays[f"{name}_images"] = rng.integers(0, 256, (count, 5, 7, 3), dtype=np.uint8)
        arrays[f"{name}_labels"] = np.arange(count) % 4
    return arrays


def npz_settings(root, monkeypatch):
    np.savez(root / "data.npz", **npz_arrays())
    return dict(path=str(root / "data.npz"))


def spoil_npz(root, monkeypatch):
    arrays = npz_arrays()
    arrays["test_labels"][0] = 9
    np.savez(root / "data.npz", **arrays)


def digits_settings(root, monkeypatch):
    return dict(test_fraction=0.2, split_seed=0)


def spoil_digits(root, monkeypatch):
    monkeypatch.setattr(sources.toy, "_read_digits", fail)


def synthetic_settings(root, monkeypatch):
    return dict(num_examples=60, num_classes=3, image_size=8, channels=2, seed=0)


def spoil_synthetic(root, monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", fail)


def tfds_settings(root, monkeypatch):
    offer_cifar(root, monkeypatch, name="cifar10", **random_cifar(num_train=40, num_test=10))
    return dict(dataset="cifar10", data_dir=str(root), train_split="train", test_split="test")


def spoil_tfds(root, monkeypatch):
    for file in root.glob("cifar10/*/*test*"):
        file.unlink()


def fail(*args, **settings):
    raise DataError("spoilt")


def folder_stream_settings(root, monkeypatch):
    stream = dict(image_size=6, resize=6, train_crop="random_resized_crop", workers=0)
    return folder_settings(root, monkeypatch) | stream


def tfds_stream_settings(root, monkeypatch):
    stream = dict(image_size=8, resize=8, train_crop="centre", on_bad_image="error", workers=0)
    return tfds_settings(root, monkeypatch) | stream


SETTINGS = {
    "digits": digits_settings,
    "folder": folder_settings,
    "folder_stream": folder_stream_settings,
    "npz": npz_settings,
    "synthetic": synthetic_settings,
    "tfds": tfds_settings,
    "tfds_stream": tfds_stream_settings,
}
SPOIL = {
    "digits": spoil_digits,
    "folder": spoil_folder,
    "folder_stream": spoil_folder,
    "npz": spoil_npz,
    "synthetic": spoil_synthetic,
    "tfds": spoil_tfds,
    "tfds_stream": spoil_tfds,
}


@pytest.fixture(params=sorted(SOURCES))
def case(request, tmp_path, monkeypatch):
    return request.param, SETTINGS[request.param](tmp_path, monkeypatch)


def error_of(call):
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700, message
    return message


# Every source.


def test_images_and_labels_have_their_dtypes_shapes_and_range(case):
    name, settings = case
    source = load(name, **settings)
    assert len(set(source.class_names)) == len(source.class_names) >= 2
    shapes = set()
    for split in (source.train, source.open_test(), source.val or source.train):
        assert isinstance(split, splits.Split)
        assert split.images.dtype == np.uint8 and split.images.ndim == 4
        assert split.labels.dtype == np.int32 and split.labels.shape == split.images.shape[:1]
        assert split.labels.min() >= 0 and split.labels.max() < len(source.class_names)
        shapes.add(split.images.shape[1:])
    assert len(shapes) == 1
    assert np.bincount(source.train.labels, minlength=len(source.class_names)).all()


def test_loading_twice_gives_the_same_bytes(case):
    name, settings = case
    one, two = load(name, **settings), load(name, **settings)
    for first, second in ((one.train, two.train), (one.open_test(), two.open_test()), (one.val, two.val)):
        assert (first is None) == (second is None)
        if first is not None:
            np.testing.assert_array_equal(first.images, second.images)
            np.testing.assert_array_equal(first.labels, second.labels)
    assert (one.class_names, one.skipped) == (two.class_names, two.skipped)


def test_test_is_not_read_by_loading(case, tmp_path, monkeypatch):
    name, settings = case
    source = load(name, **settings)
    SPOIL[name](tmp_path, monkeypatch)
    with pytest.raises(DataError):
        source.open_test().images[:]  # lazy images are read here


def test_test_shares_no_image_with_train(case):
    name, settings = case
    source = load(name, **settings)
    train, test = ({image.tobytes() for image in split.images} for split in (source.train, source.open_test()))
    assert not train & test


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_setting_is_keyword_only_and_has_a_default_but_where_the_data_are(name):
    for parameter in inspect.signature(SOURCES[name]).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert (parameter.default is parameter.empty) == (parameter.name in ("path", "root"))


def test_importing_the_sources_does_not_import_tfds_or_scikit_learn_or_jax():
    code = (
        "import sys, linseed.trainer.data.sources; print({'tensorflow_datasets', 'sklearn', 'jax'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# digits


def test_digits_are_scikit_learns_scaled_to_bytes():
    from sklearn.datasets import load_digits

    known = load_digits()
    source = load("digits", test_fraction=0.25, split_seed=3)
    test = source.open_test()
    assert source.train.images.shape[1:] == (8, 8, 1) and len(source.train.labels) + len(test.labels) == 1797
    drawn = splits.stratified_split(known.target, fraction=0.25, seed=3)[1]
    np.testing.assert_array_equal(test.labels, known.target[drawn])
    np.testing.assert_array_equal(test.images[..., 0], np.round(known.images[drawn] * 255 / 16))
    assert source.train.images.max() == 255


@pytest.mark.parametrize("setting, value", [("test_fraction", 0.0), ("test_fraction", 1.0), ("split_seed", -1)])
def test_digits_settings_out_of_range(setting, value):
    with pytest.raises(ConfigError, match=f"config.data.source.{setting}"):
        resolve({"data": {"source": {"name": "digits", setting: value}}})


# synthetic


def make_synthetic(**changes):
    settings = dict(num_examples=400, num_classes=10, image_size=16, channels=3, seed=0) | changes
    return load("synthetic", **settings)


def test_synthetic_classes_can_be_told_apart_on_test():
    source = make_synthetic()
    train, test = (split.images.reshape(400, -1).astype(np.float64) for split in (source.train, source.open_test()))
    means = np.stack([train[source.train.labels == label].mean(axis=0) for label in range(10)])
    nearest = np.argmin(((test[:, np.newaxis] - means) ** 2).sum(axis=-1), axis=1)
    assert np.mean(nearest == source.open_test().labels) > 0.95


def test_synthetic_classes_are_of_equal_size_and_in_mixed_order():
    labels = make_synthetic(num_examples=403).train.labels
    assert set(np.bincount(labels)) == {40, 41}
    assert (np.diff(labels) < 0).any()


def test_synthetic_patterns_have_low_frequencies_only():
    source = make_synthetic(num_examples=4000, num_classes=2)
    mean = source.train.images[source.train.labels == 0].mean(axis=0)[..., 0]
    energy = scipy.fft.dctn(mean - mean.mean()) ** 2
    assert energy[:4, :4].sum() > 0.95 * energy.sum()


def test_synthetic_seed_changes_the_problem():
    assert (make_synthetic(seed=0).train.images != make_synthetic(seed=1).train.images).any()


def test_synthetic_needs_two_examples_of_each_class():
    with pytest.raises(ConfigError, match="config.data.source.num_examples is 19; set it to at least 20"):
        make_synthetic(num_examples=19)


# npz


@pytest.fixture
def save(tmp_path):
    """Saves `npz_arrays()` with changes (None takes an array away) and returns a function that loads them."""

    def save_arrays(**changes):
        arrays = {name: value for name, value in (npz_arrays() | changes).items() if value is not None}
        np.savez(tmp_path / "data.npz", **arrays)
        return lambda: load("npz", path=str(tmp_path / "data.npz"))

    save_arrays.path = tmp_path / "data.npz"
    return save_arrays


def test_npz_gives_the_arrays_back(save):
    arrays = npz_arrays()
    source = save(class_names=np.array(["a", "b", "c", "d"]))()
    for name, split in (("train", source.train), ("val", source.val), ("test", source.open_test())):
        np.testing.assert_array_equal(split.images, arrays[f"{name}_images"])
        np.testing.assert_array_equal(split.labels, arrays[f"{name}_labels"])
    assert source.class_names == ("a", "b", "c", "d")


def test_npz_without_val_and_names(save):
    source = save(val_images=None, val_labels=None)()
    assert source.val is None and source.class_names == ("0", "1", "2", "3")


def test_npz_grey_images_get_a_channel_axis(save):
    arrays = {name: value[..., 0] for name, value in npz_arrays().items() if name.endswith("images")}
    source = save(**arrays)()
    assert source.train.images.shape == (20, 5, 7, 1)
    assert source.open_test().images.shape == (8, 5, 7, 1)


def test_npz_compressed_files_are_read(tmp_path):
    np.savez_compressed(tmp_path / "data.npz", **npz_arrays())
    assert len(load("npz", path=str(tmp_path / "data.npz")).train.labels) == 20


@pytest.mark.parametrize("which", ["train", "val", "test"])
@pytest.mark.parametrize(
    "part, change, cure",
    [
        ("images", lambda images: images / 255.0, "uint8"),
        ("images", lambda images: images[:, 0, 0], r"\[N, H, W\]"),
        ("images", lambda images: images[:0], r"\[N, H, W\]"),
        ("labels", lambda labels: labels.astype(np.float32), "integers"),
        ("labels", lambda labels: labels[:, np.newaxis], "one number for each image"),
        ("labels", lambda labels: labels[:-1], "one number for each image"),
        ("labels", lambda labels: labels.astype(object), "numpy.savez|integers"),
    ],
)
def test_npz_wrong_dtype_or_shape_is_found_at_once_in_every_split(save, which, part, change, cure):
    name = f"{which}_{part}"
    with pytest.raises(DataError, match=f"{name}.*({cure})"):
        save(**{name: change(npz_arrays()[name])})()


@pytest.mark.parametrize("name", [name for name in npz_arrays()])
def test_npz_missing_array_is_named(save, name):
    assert f"no array '{name}'" in error_of(save(**{name: None}))


@pytest.mark.parametrize("which", ["val", "test"])
def test_npz_images_of_another_size_are_found_at_once(save, which):
    name = f"{which}_images"
    assert name in error_of(save(**{name: npz_arrays()[name][:, :4]}))


@pytest.mark.parametrize("labels", [np.arange(20) % 4 + 1, np.arange(20) % 2 * 2, np.zeros(20, int)])
def test_npz_train_labels_must_count_from_0_without_a_gap(save, labels):
    message = error_of(save(train_labels=labels))
    assert "train_labels" in message and "0..K-1" in message


def test_npz_negative_label(save):
    assert "-1" in error_of(save(train_labels=np.arange(20) % 4 - 1))


def test_npz_val_and_test_labels_must_be_classes_of_train(save):
    assert "val_labels" in error_of(save(val_labels=np.full(6, 4)))
    message = error_of(save(test_labels=np.full(8, 4)))  # before training: labels are no pixels
    assert "test_labels" in message and "0..3" in message


@pytest.mark.parametrize("names", [["a", "b"], [1, 2, 3, 4], [["a", "b"], ["c", "d"]], np.array(list("abcd"), object)])
def test_npz_class_names_must_be_one_text_for_each_class(save, names):
    assert "class_names" in error_of(save(class_names=np.asarray(names)))


def test_npz_file_that_is_not_one(tmp_path, save):
    assert "config.data.source.path" in error_of(lambda: load("npz", path=str(tmp_path / "none.npz")))
    np.save(tmp_path / "single.npy", np.zeros(3))
    assert "single array" in error_of(lambda: load("npz", path=str(tmp_path / "single.npy")))
    (tmp_path / "text.npz").write_text("text")
    assert "numpy.savez" in error_of(lambda: load("npz", path=str(tmp_path / "text.npz")))
    (tmp_path / "empty.npz").touch()
    assert "numpy.savez" in error_of(lambda: load("npz", path=str(tmp_path / "empty.npz")))
    assert "numpy.savez" in error_of(lambda: load("npz", path=str(tmp_path)))


def test_npz_damaged_pixels_are_found(tmp_path, save):
    load_it = save()
    content = bytearray((tmp_path / "data.npz").read_bytes())
    place = content.find(npz_arrays()["train_images"].tobytes()[:64])
    assert place > 0
    content[place] ^= 0xFF
    (tmp_path / "data.npz").write_bytes(content)
    assert "train_images" in error_of(load_it)


def test_npz_cannot_run_code(tmp_path, save):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    trap = np.empty(4, object)
    trap[:] = [Trap() for _ in range(4)]
    error_of(save(class_names=trap))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "shape",
    [(8, 3, 32, 32), (8, 1, 28, 28), (8, 4, 9, 12), (8, 2, 16, 16), (8, 12, 32, 32), (8, 5, 16, 12), (8, 13, 64, 32)],
)
def test_npz_channels_before_rows_are_refused_and_the_cure_reads_them(save, tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(8) % 4
    arrays = {f"{part}_images": images for part in ("train", "val", "test")}
    arrays |= {f"{part}_labels": labels for part in ("train", "val", "test")}
    assert "set config.data.source.layout=NCHW, otherwise NHWC" in error_of(save(**arrays))
    read = functools.partial(load, "npz", path=str(tmp_path / "data.npz"))
    source = read(layout="NCHW")
    for split in (source.train, source.val, source.open_test()):
        np.testing.assert_array_equal(split.images, images.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(read(layout="NHWC").train.images, images)


@pytest.mark.parametrize(
    "shape", [(8, 28, 28), (8, 3, 3, 3), (8, 32, 32, 13), (8, 8, 8, 12), (8, 1, 40, 3), (8, 24, 48, 5)]
)
def test_npz_channels_behind_columns_are_read_without_a_question(save, shape):
    images, labels = np.zeros(shape, np.uint8), np.arange(8) % 4
    arrays = {"train_images": images, "test_images": images, "train_labels": labels, "test_labels": labels}
    source = save(**arrays, val_images=None, val_labels=None)()
    assert source.train.images.shape == (*shape, 1)[:4] and source.notes == ()


def test_npz_two_arrays_of_one_name_are_refused(save, tmp_path):
    save()
    other = io.BytesIO()
    np.save(other, npz_arrays()["train_images"])
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "data.npz", "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("train_images.npy", other.getvalue())
    message = error_of(lambda: load("npz", path=str(tmp_path / "data.npz")))
    assert "two arrays of one name ('train_images')" in message


@pytest.mark.parametrize("label", [20, 10**12, 2**32, 2**63 - 1])
def test_npz_a_label_beyond_the_images_is_refused_before_it_is_counted(save, label):
    labels = npz_arrays()["train_labels"].astype(np.int64)
    labels[-1] = label
    assert f"train_labels in {save.path} holds {label}; labels must be 0..K-1" in error_of(save(train_labels=labels))


@pytest.mark.parametrize("descr, shape", [("<U0", (10**12,)), ("<U0", (10**6, 10**6)), ("<U5", (3,)), ("<U0", ())])
def test_npz_names_that_are_not_one_a_class_are_refused_unread(save, tmp_path, descr, shape):
    save()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "data.npz", "a") as archive:
        archive.writestr("class_names.npy", header.getvalue() + bytes(60))
    assert "class_names in" in error_of(lambda: load("npz", path=str(tmp_path / "data.npz")))


def test_npz_a_name_of_two_classes_is_refused(save):
    assert "holds a name twice" in error_of(save(class_names=np.array(["a", "b", "a", "d"])))


@pytest.mark.parametrize("name", ["validation_images", "dev_labels", "Test_set_images", "training_images"])
def test_npz_a_split_by_another_name_is_refused(save, name):
    assert f"holds '{name}'; save it as '" in error_of(save(**{name: np.zeros(3)}))


def test_npz_arrays_that_are_not_used_are_named(save):
    assert save(ids=np.arange(20), source=np.zeros(1))().notes == (
        f"not used: the arrays 'ids', 'source' of {save.path}",
    )
