"""The images that are shown: the right ones, with their names, sizes and maps."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from linseed.trainer.data.sources import folder, folder_stream
from linseed.trainer.data.splits import Split
from linseed.trainer.report import examples, thumbnails
from linseed.trainer.report.predictions import Collector


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def predicted(logits, labels):
    collector = Collector(examples=len(labels))
    rows = {"logits": np.float32(logits), "label": np.int32(labels)}
    collector.add({**rows, "mask": np.ones(len(labels)), "brightness": np.ones(len(labels))})
    return collector.predictions(temperature=1.0)


def red(images, answers):
    return images[..., 0].astype(np.float32)


def test_the_worst_mistakes_and_the_least_certain_come_first():
    found = predicted([[5, 0], [0, 1], [0, 9], [0.1, 0]], [0, 0, 0, 0])
    split = Split(np.zeros((4, 5, 5, 1), np.uint8), found.label)
    listed = examples.examples(found, split, saliency=red)
    assert [each["loss"] for each in listed["mistakes"]] == [found.loss[2], found.loss[1]]
    assert [each["confidence"] for each in listed["uncertain"]] == [found.confidence[i] for i in (3, 1, 0, 2)]
    assert all("where" in each for each in listed["mistakes"]) and "where" not in listed["uncertain"][0]
    assert listed["mistakes"][0]["name"] == ""


def test_a_network_without_a_map_costs_the_maps_alone(caplog):
    def fail(images, answers):
        raise ValueError("no gradient")

    found = predicted([[0, 1]], [0])
    listed = examples.examples(found, Split(np.zeros((1, 5, 5, 3), np.uint8), found.label), saliency=fail)
    assert listed["mistakes"][0]["picture"] and "where" not in listed["mistakes"][0]
    assert "no maps of where the network looked: ValueError: no gradient" in caplog.text


@pytest.fixture
def photos(tmp_path):
    for place, name in enumerate("ab"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(3):
            size = (20 + 10 * number, 40)
            exif = Image.Exif()
            exif[0x0112] = 6 if number == 2 else 1  # turned: 40x40 either way but for the first two
            Image.new("RGB", size, (90 * place, 9, 9)).save(tmp_path / "train" / name / f"{number}.jpg", exif=exif)
    return tmp_path


@pytest.mark.parametrize("source", [folder.folder, folder_stream.folder_stream])
def test_names_and_sizes_are_those_of_the_files(photos, source):
    sizes = {"image_size": 16} if source is folder.folder else {"image_size": 16, "resize": 16}
    split = source(root=str(photos), test_fraction=0.34, **sizes).train
    found = examples.with_sizes(predicted([[0, 1]] * len(split.labels), split.labels), split)
    listed = examples.examples(found, split, saliency=red)
    assert all(each["name"].startswith("train/a/") for each in listed["mistakes"]) and listed["mistakes"]
    for width, height, each in zip(found.width, found.height, listed["uncertain"], strict=True):
        with Image.open(photos / each["name"]) as image:
            assert (width, height) == image.size


def test_large_pictures_are_shrunk_and_small_ones_kept_without_loss():
    small = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(opened(thumbnails.picture(small))), small)
    assert opened(thumbnails.picture(np.zeros((900, 600, 3), np.uint8))).size[1] == thumbnails.SIDE
    assert opened(thumbnails.picture(np.zeros((4, 4, 1), np.uint8))).mode == "L"


@pytest.mark.parametrize("values", [0.0, 1.0])
def test_a_map_marks_its_largest_values_and_a_flat_one_fails_nothing(values):
    saliency = np.full((40, 40), values, np.float32)
    image = np.full((40, 40, 3), 200, np.uint8)
    assert opened(thumbnails.where(image, saliency)).size == (40, 40)
    saliency[8:12, 30:34] += 5
    drawn = np.asarray(opened(thumbnails.where(image, saliency)), np.int32)
    coloured = drawn[..., 0] - drawn[..., 2]
    assert np.abs(np.subtract(np.unravel_index(coloured.argmax(), coloured.shape), (10, 32))).max() <= 2
