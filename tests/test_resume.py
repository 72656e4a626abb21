"""Going on with a changed config: nothing is lost, nothing is taken for damage, every figure is of one config."""

import functools
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image
from support.runs import Killer, Stop, records, run, tiny

from linseed.trainer import evaluation
from linseed.trainer.data import batching, sources, splits
from linseed.trainer.errors import CheckpointError, DataError, WorkdirError
from linseed.trainer.experiment import Shared
from linseed.trainer.run.workdir import read_result

accept = functools.partial(run, on_config_change="accept")


def anew(config, workdir, **options):
    """A run that lists its files itself: those of other tests share them."""
    return run(config, workdir, shared=Shared(), **options)


accepted_anew = functools.partial(anew, on_config_change="accept")


def small(**changes):
    """The tiny run with a network that compiles fast."""
    config = tiny(**{"data.augment": "", **{key: value for key, value in changes.items() if "model" not in key}})
    with config.unlocked():
        config.model = dict(name="mlp", widths=(8,), normalization="none", dropout=0.0, activation="relu")
    config.update_from_flattened_dict({key: value for key, value in changes.items() if "model" in key})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return run(small(), workdir), workdir


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """At step 14 of 24, after the checkpoint of step 8 at least."""
    workdir = tmp_path_factory.mktemp("killed")
    with pytest.raises(Stop):
        run(small(), workdir, writer=Killer(14))
    return workdir


@pytest.fixture
def begun(killed, tmp_path):
    return shutil.copytree(killed, tmp_path / "begun")


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer.clip_norm": 0.0},
        {"optimizer.clip": "value"},
        {"optimizer.rules": ("head/.*: frozen", "rest:")},
        {"optimizer.rules": ("head/.*: lr=10", "rest:")},
        {"optimizer.rules": ("head/.*: decay=0.5", "rest:")},
    ],
)
def test_a_change_without_an_array_goes_on_from_the_same_checkpoint(begun, change):
    killer = Killer(-1)
    assert accept(small(**change), begun, writer=killer)["steps"] == 24
    assert any(line.startswith("resuming after step ") for line in killer.said)
    assert not (begun / "damaged_checkpoints").exists()


@pytest.mark.parametrize("change", [{"optimizer.rules": ("head/.*: until_epochs=3", "rest:")}, {"ema_decay": 0.0}])
def test_a_change_of_an_array_is_refused_and_the_first_config_still_goes_on(finished, begun, change):
    with pytest.raises(CheckpointError, match="is of another model or optimizer"):
        accept(small(**change), begun)
    assert not (begun / "damaged_checkpoints").exists()
    assert run(small(), begun)["params_sha256"] == finished[0]["params_sha256"]


@pytest.mark.parametrize(
    "change", [{"data.normalize": "none"}, {"eval.views": "mirror"}, {"model.activation": "tanh"}, {"seed": 1}]
)
def test_val_in_the_result_is_that_of_evaluate_whatever_has_changed(begun, change):
    result = accept(small(**change), begun)
    again = evaluation.evaluate_checkpoint(begun, which="best", split="val")
    assert again["step"] == result["best_step"]
    assert {key: again[key] for key in result["val"]} == result["val"]


def test_the_best_is_chosen_among_checkpoints_that_were_judged_alike(tmp_path):
    """By the old settings the first checkpoints are good, by the new ones they are at chance."""
    run(small(**{"horizon.epochs": 5.0}), tmp_path)
    killer = Killer(-1)
    result = accept(small(**{"model.activation": "tanh", "data.normalize": "none"}), tmp_path, writer=killer)
    assert any("judged" in line and "anew" in line for line in killer.said)
    assert result["lost_best_step"] is None
    experiment, kept = evaluation.restore_weights(
        evaluation.read_run(tmp_path), tmp_path, which="snapshots", split="val"
    )
    judged = {
        step: experiment.evaluate(experiment.parallel.replicate(w), experiment.val)["accuracy"] for step, w in kept
    }
    assert len(judged) == len(kept) > 0
    assert result["best_step"] == max(judged, key=lambda step: (judged[step], step))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"horizon.epochs": 3.0}, "has made 24 steps and this config ends it after 12: nothing is left to train"),
        ({"data.batch_size": 64, "horizon.epochs": 5.0}, "nothing is left to train"),
        ({"optimizer.lr": 1e-3}, "has made 24 steps and this config ends it after 24"),
        ({"eval.views": "mirror"}, "nothing is left to train.*raise config.horizon"),
    ],
)
def test_a_finished_run_with_nothing_left_to_train_opens_nothing_and_stays(finished, tmp_path, change, says):
    workdir = shutil.copytree(finished[1], tmp_path / "run")
    with pytest.raises(WorkdirError, match=says):
        accept(small(**change), workdir)
    assert read_result(workdir) == finished[0]
    assert len((workdir / "test_openings.jsonl").read_text().splitlines()) == 1
    assert run(small(), workdir) == finished[0]


def test_a_run_that_stopped_early_and_still_would_is_refused_as_well(tmp_path):
    stale = {"early_stopping.patience": 2, "early_stopping.min_delta": 1.0}
    assert run(small(**stale), tmp_path)["steps"] == 12
    with pytest.raises(WorkdirError, match="has made 12 steps and early stopping ends it there"):
        accept(small(**stale, **{"horizon.epochs": 9.0}), tmp_path)
    assert accept(small(**{"early_stopping.min_delta": 1.0}), tmp_path)["steps"] == 24


@pytest.mark.parametrize(("batch_size", "steps"), [(64, 8 + 8), (16, 8 + 32)])
def test_another_batch_size_counts_the_examples_that_were_seen(tmp_path, batch_size, steps):
    """8 steps of 32 are 2 epochs of 128 images; 4 epochs are left, in the new size."""
    run(small(**{"horizon.epochs": 2.0}), tmp_path)
    longer = small(**{"data.batch_size": batch_size})
    with pytest.raises(Stop):
        accept(longer, tmp_path, writer=Killer(14))
    result = run(longer, tmp_path)
    assert (result["steps"], result["stop_reason"]) == (steps, "horizon reached")
    found = records(tmp_path)
    assert found[-1]["epoch"] == 6.0
    evaluated = [record["epoch"] for record in found if "val_accuracy" in record]
    assert evaluated == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    # The cosine goes on where the examples are, down to 0 at the end of the run.
    new = [record for record in found if record["step"] > 8]
    total, warmup = 6 * 128 // batch_size, 128 // batch_size
    for record in new:
        place = record["epoch"] * 128 / batch_size - 1  # the rate that was applied is that of the step before
        expected = 0.02 * (1 + math.cos(math.pi * (place - warmup) / (total - warmup))) / 2
        assert record["lr"] == pytest.approx(expected, rel=1e-4)


def test_a_checkpoint_of_an_earlier_version_goes_on_and_not_with_another_batch_size(begun, monkeypatch):
    """It knows neither its batch size nor what judged it."""
    restore = evaluation.Checkpoints._restore

    def earlier(self, step, like):
        state, progress = restore(self, step, like)
        return state, {key: progress[key] for key in progress if key not in ("batch_size", "judged_by", "shift")}

    monkeypatch.setattr(evaluation.Checkpoints, "_restore", earlier)
    with pytest.raises(WorkdirError, match="do not say their batch size; go on with the old config.data.batch_size"):
        accept(small(**{"data.batch_size": 64}), begun)
    assert run(small(), begun)["steps"] == 24


def photos(root, *, count=24):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(100 * label, 100 * label + 100, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")


def of_photos(root, *, source="folder", on_bad_image="error", **changes):
    config = small(**{"data.batch_size": 8, "horizon.epochs": 3.0, "eval.batch_size": 8, **changes})
    more = {} if source == "folder" else {"resize": 8, "train_crop": "centre"}
    with config.unlocked():
        config.data.source = dict(name=source, root=str(root), image_size=8, on_bad_image=on_bad_image, **more)
    return config


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def carved_for_test(root):
    """An image that the folder source puts into the test part."""
    train = sources.load(name="folder", root=str(root), image_size=8).train.images
    return next(path for path in sorted(root.rglob("*.png")) if not _is_among(path, train))


def _is_among(path, images):
    return any((np.asarray(Image.open(path)) == image).all() for image in images)


@pytest.mark.parametrize("source", ["folder", "folder_stream"])
def test_the_cure_for_a_truncated_image_in_the_carved_test_part_finishes_the_run(tmp_path, source):
    photos(tmp_path / "photos")
    bad = carved_for_test(tmp_path / "photos")
    whole = bad.read_bytes()
    truncate(bad)
    workdir = tmp_path / "run"
    with pytest.raises(DataError, match="--config.data.source.on_bad_image=skip --on_config_change=accept") as refused:
        anew(of_photos(tmp_path / "photos", source=source), workdir)
    assert "delete" not in str(refused.value).partition("before the first checkpoint")[0]
    skipped = shutil.copytree(workdir, tmp_path / "skipped")
    result = accepted_anew(of_photos(tmp_path / "photos", source=source, on_bad_image="skip"), skipped)
    bad.write_bytes(whole)  # the other cure
    repaired = accepted_anew(of_photos(tmp_path / "photos", source=source), workdir)
    assert (result["test"]["examples"], repaired["test"]["examples"]) == (9, 10)
    assert result["params_sha256"] == repaired["params_sha256"]
    assert evaluation.evaluate_checkpoint(workdir, which="best", split="test")["examples"] == 10


def test_the_cure_for_an_image_that_a_stream_meets_after_a_checkpoint_finishes_the_run(tmp_path):
    photos(tmp_path / "photos")
    quick = {"source": "folder_stream", "data.normalize": "none", "eval.every_epochs": 0.25}  # at each step
    config = functools.partial(of_photos, tmp_path / "photos", **quick)
    source = sources.load(**config().data.source)
    train, _ = splits.carve_validation(source, fraction=0.2, seed=0)
    late = batching.places(3, seed=config().seed, num_examples=len(train.labels), batch_size=8)["index"][0]
    truncate(tmp_path / "photos" / train.images.records.name(train.images.places[late]))
    with pytest.raises(DataError, match="--config.data.source.on_bad_image=skip --on_config_change=accept"):
        anew(config(), tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert accepted_anew(config(on_bad_image="skip"), tmp_path / "run")["stop_reason"] == "horizon reached"


def test_another_test_split_is_refused_unless_it_is_accepted(tmp_path):
    photos(tmp_path / "photos" / "train")
    photos(tmp_path / "photos" / "test", count=4)
    config = of_photos(tmp_path / "photos")
    with pytest.raises(Stop):
        anew(config, tmp_path / "run", writer=Killer(9))
    gone = tmp_path / "photos" / "test" / "dog" / "03.png"
    gone.unlink()
    with pytest.raises(DataError, match="the test split changed since this run started.*or go on with it by --on_con"):
        anew(config, tmp_path / "run")
    result = accepted_anew(config, tmp_path / "run")
    assert result["test"]["examples"] == 7
    (opening,) = map(json.loads, (tmp_path / "run" / "test_openings.jsonl").read_text().splitlines())
    assert opening["fingerprint"] == sources.load(**config.data.source).test_fingerprint
    (tmp_path / "photos" / "test" / "cat" / "03.png").unlink()
    with pytest.raises(DataError, match="the test split changed"):
        evaluation.evaluate_checkpoint(tmp_path / "run", which="best", split="test")
    assert evaluation.evaluate_checkpoint(tmp_path / "run", which="best", split="val")["test_openings"] == 1


def test_the_openings_of_later_evaluations_are_shown_in_the_result_and_the_report(finished, tmp_path):
    workdir = shutil.copytree(finished[1], tmp_path / "run")
    evaluation.evaluate_checkpoint(workdir, which="best", split="test")
    assert read_result(workdir) == {**finished[0], "test_openings": 2}
    assert "2 times" in (workdir / "report.html").read_text()
    assert run(small(), workdir)["test_openings"] == 2
