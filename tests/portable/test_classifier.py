"""A model file alone predicts what its run predicted, from files, images and arrays."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from support.runs import SHARED, run, tiny

import linseed
from linseed.models import MODELS
from linseed.models.cnn import Cnn
from linseed.trainer import evaluation, soup
from linseed.trainer.errors import ConfigError, DataError
from linseed.trainer.portable import classifier, from_run, model_file
from linseed.trainer.report import predictions
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.weights import find
from linseed.trainer.weights.features import computed

SIZE, BATCH = 8, 16


def photos(folder):
    """Photos of three classes: JPEG of other shapes, one on its side, PNG of 16 bits, transparent and grey ones."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ants", "bees", "wasps")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 120, (20 + number, 30, 3), np.uint8)
            pixels[..., label] += 100
            path = folder / name / f"{number}.png"
            if number % 4 == 0:
                exif = Image.Exif()
                exif[0x0112] = 6
                Image.fromarray(pixels).save(path.with_suffix(".jpg"), exif=exif)
            elif number % 4 == 1:
                Image.fromarray(pixels[..., label].astype(np.uint16) * 16).save(path)
            elif number % 4 == 2:
                Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(path)
            else:
                Image.fromarray(pixels[..., label]).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on photos, in `run`, and the photos."""
    place = tmp_path_factory.mktemp("portable")
    photos(place / "photos")
    config = tiny(**{"horizon.epochs": 2.0, "schedule.warmup_epochs": 0.0, "data.batch_size": 8, "ema_decay": 0.0})
    with config.unlocked():
        config.data.source = dict(name="folder_stream", root=str(place / "photos"), image_size=SIZE, resize=10)
        config.data.source.update(fit="pad", background="grey", bits=12, interpolation="bicubic")
        config.eval.batch_size, config.eval.views = BATCH, "mirror"
    run(config, place / "run", judge=("val",))
    return place


@pytest.fixture(scope="module")
def judged(place):
    """The run's experiment, its best weights and their logits on validation."""
    workdir = place / "run"
    experiment, [(_, weights)] = evaluation.restore_weights(evaluation.read_run(workdir), workdir, which="best")
    return experiment, weights, _logits(experiment, weights, batch_size=BATCH)


def _logits(experiment, weights, *, batch_size):
    compute = jax.jit(experiment.logits)
    return computed(experiment.val, lambda images: compute(weights, images), batch_size=batch_size)


@pytest.fixture(scope="module")
def loaded(place):
    return linseed.load(place / "run" / "model.linseed")


def test_the_file_gives_the_validation_logits_of_its_run(place, judged, loaded):
    experiment, _, expected = judged
    images = experiment.val.images
    paths = [place / "photos" / images.records.name(record) for record in images.places]
    found = loaded.predict(paths, batch_size=BATCH)
    assert np.array_equal(found.logits, expected.values)
    assert found.names == tuple(map(str, paths))
    accuracy = np.mean(found.classes == experiment.val.labels)
    assert accuracy == pytest.approx(loaded.card["accuracy"]["val"]["accuracy"])
    other = loaded.predict(paths, batch_size=4)  # rounding may differ in the last bits
    assert np.allclose(other.logits, expected.values, rtol=0, atol=1e-5)


def test_the_card_says_what_the_run_measured(place, loaded):
    result = workdir_lib.read_result(place / "run")
    assert loaded.card["accuracy"] == {"val": result["val"], "test": None}
    assert loaded.class_names == ("ants", "bees", "wasps")
    config = json.loads((place / "run" / "config.json").read_text())
    assert loaded.card["config"] == {key: value for key, value in config.items() if key != "crc32"}
    assert loaded.card["temperature"] == predictions.read(place / "run" / workdir_lib.PREDICTIONS)[1]  # the report's
    assert loaded.card["versions"] == result["versions"] and loaded.card["best_step"] == result["best_step"]


def test_export_writes_the_very_file_that_the_run_wrote(place, tmp_path):
    found = soup.greedy([place / "run"], which="best", say=lambda line: None)
    experiment = found.experiment
    _, examples = evaluation.evaluate_each(experiment, experiment.parallel.replicate(found.weights), experiment.val)
    from_run.write(
        tmp_path / "again.linseed",
        found.weights,
        config=found.config,
        experiment=experiment,
        temperature=examples.temperature,
        result=from_run.result_of(place / "run", found.weights, val=found.figures),
        workdir=place / "run",
    )
    assert (tmp_path / "again.linseed").read_bytes() == (place / "run" / "model.linseed").read_bytes()


def test_a_file_an_image_and_its_pixels_are_read_alike(place, loaded):
    for name in ("ants/1.png", "ants/2.png", "bees/3.png"):
        path = place / "photos" / name
        expected = loaded.preprocessing.decode(str(path))
        with Image.open(path) as image:
            assert np.array_equal(loaded.preprocessing.of_image(image), expected), name
            pixels = np.asarray(image)
        if pixels.dtype == np.uint8:
            assert np.array_equal(loaded.preprocessing.of_array(pixels), expected), name
    whole = loaded.predict(place / "photos" / "bees" / "3.png").logits
    with Image.open(place / "photos" / "bees" / "3.png") as image:
        assert np.array_equal(loaded.predict(image).logits, whole)
        assert np.array_equal(loaded.predict([image, np.asarray(image)]).logits.max(axis=0), whole[0])


def test_arrays_of_the_own_shape_are_taken_as_they_are(judged, loaded):
    experiment, _, expected = judged
    pixels = experiment.val.images[:]
    assert np.allclose(loaded.predict(pixels).logits, expected.values, rtol=0, atol=1e-5)
    assert len(loaded.predict(pixels[0])) == 1


def test_probabilities_are_by_the_temperature_and_top_is_sorted(place, loaded):
    folder = place / "photos" / "ants"
    found, raw = loaded.predict(folder, features=True), loaded.predict(folder, calibrated=False)
    assert found.names == tuple(sorted(map(str, folder.iterdir()))) and found.features.shape == (12, 8)
    scaled = np.exp(raw.logits / loaded.card["temperature"])
    assert np.allclose(found.probabilities, scaled / scaled.sum(axis=1, keepdims=True), atol=1e-6)
    assert np.allclose(raw.probabilities, jax.nn.softmax(raw.logits), atol=1e-6)
    (first, second, third), *_ = found.top(9)
    assert first[0] == found.labels[0] and first[1] >= second[1] >= third[1]
    assert sum(share for _, share in (first, second, third)) == pytest.approx(1, abs=1e-5)


def test_one_program_serves_a_stream(loaded):
    before = loaded._programs[False]._cache_size()
    images = (("", np.zeros((SIZE, SIZE, 3), np.uint8)) for _ in range(21))
    parts = list(loaded.stream(images, batch_size=8))
    assert [len(part.predictions) for part in parts] == [8, 8, 5]
    assert loaded._programs[False]._cache_size() <= before + 1


def test_few_images_are_read_ahead_of_what_is_asked_for():
    asked = []
    endless = (asked.append(number) or number for number in itertools.count())
    with ThreadPoolExecutor(1) as pool:
        found = classifier._ahead(pool, str, endless, most=4)
        assert [next(found) for _ in range(3)] == ["0", "1", "2"] and len(asked) <= 7


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ("absent.jpg", "no file or folder at absent.jpg"),
        ([], "no images in"),
        (7, "int is no image"),
        ([None], "image 0 is a NoneType"),
        (np.zeros((8, 8, 3)), r"an array of float64 \[8, 8, 3\] is no image"),
        (np.zeros((8, 8, 2), np.uint8), "no image of 1, 3 or 4 channels"),
        ([Path(__file__)], r"test_classifier.py cannot be read \(not a whole image"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(loaded, images, says):
    with pytest.raises(DataError, match=says) as refused:
        loaded.predict(images)
    assert "\n" not in str(refused.value)


def test_a_grey_network_takes_grey_files_and_batches(tmp_path):
    config = tiny(**{"horizon.epochs": 1.0, "schedule.warmup_epochs": 0.0, "data.augment": ""})
    with config.unlocked():
        config.data.source.channels = 1
    run(config, tmp_path / "run", judge=("val",))
    ours = classifier.load(tmp_path / "run" / "model.linseed")
    experiment, [(_, weights)] = evaluation.restore_weights(config, tmp_path / "run", which="best")
    expected = _logits(experiment, weights, batch_size=config.eval.batch_size).values
    batch = experiment.val.images
    for place, pixels in enumerate(batch):
        Image.fromarray(pixels[..., 0]).save(tmp_path / f"{place:03}.png")
    found = ours.predict(sorted(tmp_path.glob("*.png")), batch_size=config.eval.batch_size)
    assert np.array_equal(found.logits, expected)
    assert np.array_equal(ours.predict(batch[..., 0], batch_size=config.eval.batch_size).logits, expected)


def test_a_model_file_is_weights_to_start_from(place, judged):
    found = find.find(str(place / "run" / "model.linseed"))
    assert found.card.architecture == "cnn" and found.card.input.size == SIZE
    assert found.card.input.interpolation == "bicubic"


def changed(place, tmp_path, change):
    card, tensors = model_file.read(place / "run" / "model.linseed")
    del card["sha256"], card["format"]
    change(card, tensors)
    model_file.write(tmp_path / "changed.linseed", card=card, tensors=tensors)
    return tmp_path / "changed.linseed"


def of_a_plugin(card, tensors):
    card["config"]["model"]["name"], card["config"]["plugins"] = "theirs", ["their_models"]


def deep(card, tensors):
    card["config"]["model"] = {"name": "mlp", "widths": [4] * 10_000}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_a_plugin, "uses the plugin 'their_models', which is not loaded; add --plugin=their_models"),
        (lambda card, _: card["config"]["model"].update(name="nnc"), "unknown config.model.name 'nnc'"),
        (lambda card, _: card["config"]["model"].update(widths=[10**9]), "other arrays here|in the file"),
        (deep, "more layers than the file has weights"),
        (lambda card, _: card["config"]["model"].update(depth=3), "unknown config key 'model.depth'"),
        (lambda card, _: card["preprocessing"].update(height=10**9), "says what cannot be"),
        (lambda card, _: card["preprocessing"].update(fit="bend"), "says what cannot be .*one of 'crop'"),
        (lambda card, _: card["preprocessing"].update(mean=[0.5]), "mean and deviation are of other images"),
        (lambda card, _: card.update(temperature=0.0), "temperature 0.0"),
        (lambda card, _: card.update(label_names=["a"] * 10**5), "in the file, and"),
        (lambda card, _: card.pop("config"), "says what cannot be"),
        (lambda card, tensors: tensors.pop("head.bias"), "has other arrays here, such as head.bias"),
        (lambda card, tensors: tensors.update(more=np.ones(1)), "has other arrays here, such as more"),
    ],
)
def test_a_card_that_cannot_be_is_refused_in_one_line(place, tmp_path, change, says):
    with pytest.raises((DataError, ConfigError), match=says) as refused:
        classifier.load(changed(place, tmp_path, change))
    assert "\n" not in str(refused.value) and "changed.linseed" in str(refused.value)


def test_nothing_beside_the_file_is_imported(place, tmp_path):
    path = changed(place, tmp_path, of_a_plugin)
    (tmp_path / "their_models.py").write_text("raise SystemExit('imported')")
    with pytest.raises(ConfigError, match="--plugin=their_models"):
        classifier.load(path)


class Twice(Cnn):
    torch_names = (("block1/norm", "block1/conv"),)  # whose bias and kernel then have the names of the convolution's


def test_a_network_whose_arrays_share_a_name_trains_and_has_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "twice", Twice)
    config = tiny(**{"horizon.epochs": 1.0, "schedule.warmup_epochs": 0.0, "model.name": "twice"})
    assert run(config, tmp_path / "run", judge=("val",), shared=SHARED)["steps"]
    assert not (tmp_path / "run" / "model.linseed").exists()
