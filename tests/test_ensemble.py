"""An ensemble is the average of what its members predict, each example once, and test is opened for all of them."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.special

from linseed.configs import digits
from linseed.models import MODELS
from linseed.models.layers import Compute
from linseed.trainer import evaluation, train
from linseed.trainer.config.resolve import resolve
from linseed.trainer.data import batching, sources
from linseed.trainer.data.splits import Split
from linseed.trainer.ensemble import AVERAGES, evaluate_ensemble, make_ensemble_step
from linseed.trainer.errors import CheckpointError, ConfigError, DataError, WorkdirError
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import read_records
from linseed.trainer.runtime.data_parallel import BACKENDS, DataParallel
from linseed.trainer.step import losses
from linseed.trainer.step.losses import LOSSES

ROOT = Path(__file__).parent.parent
EXTRA = {"weighted_softmax": dict(class_weights=(1.0, 2.0, 0.5, 1.0))}


def fit(workdir, **changes):
    """A run of 12 steps and three kept checkpoints."""
    config = resolve(digits.get_config())
    with config.unlocked():
        config.data.source = dict(name="synthetic", num_examples=160, num_classes=4, image_size=8, channels=3, seed=0)
        config.model = dict(changes.pop("model", dict(name="linear")))
        config.loss = dict(name=changes.pop("loss", "softmax"))
    flat = {
        "data.val_fraction": 0.2,
        "ema_decay": 0.9,
        "label_smoothing": 0.0,
        "horizon.epochs": 3.0,
        "schedule.warmup_epochs": 0.5,
        "eval.batch_size": 24,  # the 32 validation examples end in a padded batch
        "checkpoint.keep_latest": 3,
    }
    config.update_from_flattened_dict({**flat, **changes})
    train.train_and_evaluate(config, workdir, writer=Quiet(), on_config_change="refuse")
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of different models, seeds and preprocessing on the same data."""
    root = tmp_path_factory.mktemp("runs")
    cnn = dict(name="cnn", widths=(4, 8), activation="relu", kernel_init="auto", normalization="batch", dropout=0.1)
    return [fit(root / "linear"), fit(root / "cnn", model=cnn, seed=1, **{"data.normalize": "mean_image"})]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run on other splits, without a moving average."""
    return fit(tmp_path_factory.mktemp("other"), **{"data.split_seed": 1, "ema_decay": 0.0, "horizon.epochs": 1.0})


def copy(workdir, target, **changes):
    """The run in `workdir` again, as if its config had `changes`."""
    shutil.copytree(workdir, target)
    config = workdir_lib.read_config(target)
    config.update_from_flattened_dict(changes)
    workdir_lib.write_sealed(target / "config.json", config.to_dict())
    return target


def openings(workdir):
    return [json.loads(line) for line in (workdir / "test_openings.jsonl").read_text().splitlines()]


def numpy_average(name, logits):
    """What an average of members' logits [M, B, C] should be, by its definition: a distribution or scores, float64."""
    link = {"svm": np.asarray, "sigmoid": scipy.special.expit}.get(
        name, functools.partial(scipy.special.softmax, axis=-1)
    )
    return link(np.asarray(logits, np.float64)).mean(axis=0)


def numpy_loss(name, average, labels):
    """The loss of `numpy_average`, one value per example."""
    right = average[np.arange(len(labels)), labels]
    if name == "svm":
        return np.maximum(average - right[:, None] + 1, 0).sum(axis=1) - 1
    if name == "sigmoid":
        others = np.log1p(-average).sum(axis=1) - np.log1p(-right)
        return -np.log(right) - others
    weights = np.array(EXTRA[name]["class_weights"])[labels] if name in EXTRA else 1.0
    return -weights * np.log(right)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("devices", [1, 4])
def test_every_loss_has_its_average_and_each_example_counts_once(name, backend, devices):
    """The members: two checkpoints of one run and one of another, whose logits are the image's pixels, scaled."""
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (13, 2, 2, 1), dtype=np.uint8), rng.integers(0, 4, 13, dtype=np.int32))

    def logits(weights, images):
        return images.reshape(len(images), -1).astype(np.float32) / 64 * weights

    weights = [rng.normal(size=(count, 4)).astype(np.float32) for count in (2, 1)]
    loss = losses.make_loss(name, label_smoothing=0.0, **EXTRA.get(name, {}))
    parallel = DataParallel(backend, devices=jax.devices()[:devices])
    step = make_ensemble_step(logits=[logits, logits], average=AVERAGES[name], loss=loss)
    step = parallel.compile(step, donate=False)
    batches = batching.eval_batches(split, batch_size=8)
    found = jax.device_get([step(parallel.replicate(weights), parallel.shard(batch)) for batch in batches])

    each = np.stack([logits(member, split.images) for member in np.concatenate(weights)])
    average = numpy_average(name, each)
    sums = {key: sum(batch[0][key] for batch in found) for key in ("loss", "correct", "examples")}
    by_class = functools.partial(np.bincount, minlength=4)
    assert sums["examples"].tolist() == by_class(split.labels).tolist()
    assert sums["correct"].tolist() == by_class(split.labels[average.argmax(axis=1) == split.labels]).tolist()
    assert sums["loss"] == pytest.approx(numpy_loss(name, average, split.labels).sum(), rel=1e-4)
    for index, own in enumerate(each):
        correct = sum(batch[1][index]["correct"] for batch in found)
        assert correct.tolist() == by_class(split.labels[own.argmax(axis=1) == split.labels]).tolist()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_average_of_equals_is_what_each_says_and_surety_is_no_infinity(name):
    loss = losses.make_loss(name, label_smoothing=0.0, **EXTRA.get(name, {}))
    labels = np.array([0, 1, 2], np.int32)
    logits = np.array([[-200.0, 300, 0, 0], [3, 2, 1, 0], [0, 90, -90, 5]], np.float32)
    np.testing.assert_allclose(
        loss(AVERAGES[name](np.stack([logits] * 3)), labels), loss(logits, labels), rtol=1e-5, atol=1e-5
    )


def test_the_average_equals_numpys_from_the_logits_of_the_members(runs):
    """From the images to the figures, through each run's own model and statistics."""
    probabilities = []
    for workdir in runs:
        config = evaluation.read_run(workdir)
        experiment, [(_, weights)] = evaluation.restore_weights(config, workdir, which="best")
        images = experiment.train.images / 255.0
        axes = (0,) if config.data.normalize == "mean_image" else (0, 1, 2)
        scale = 1.0 if config.data.normalize == "mean_image" else images.std(axis=axes)
        pixels = ((experiment.val.images / 255.0 - images.mean(axis=axes)) / scale).astype(np.float32)
        parameters = config.model.to_dict()
        compute = Compute(np.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)
        model = MODELS[parameters.pop("name")](**parameters, num_classes=4, compute=compute)
        logits = model.apply({"params": weights["params"], **weights["model_state"]}, pixels, train=False)
        probabilities.append(scipy.special.softmax(np.asarray(logits, np.float64), axis=1))
    labels, mean = experiment.val.labels, np.mean(probabilities, axis=0)
    found = evaluate_ensemble(runs, which="best", split="val")
    assert found["examples"] == len(labels) == 32
    assert found["accuracy"] == np.mean(mean.argmax(axis=1) == labels)
    assert found["loss"] == pytest.approx(-np.log(mean[np.arange(32), labels]).mean(), rel=1e-4)
    assert found["loss"] < np.mean([member["loss"] for member in found["members"]])  # -log is convex


@pytest.mark.parametrize("which", ["best", "latest", "ema"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_one_member_is_the_checkpoint_itself(runs, which, split):
    alone = evaluation.evaluate_checkpoint(runs[1], which=which, split=split)
    found = evaluate_ensemble(runs[1:], which=which, split=split)
    (member,) = found["members"]
    for figures in (found, member):
        assert figures["accuracy"] == alone["accuracy"]
        assert figures["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert (found["examples"], member["step"]) == (alone["examples"], alone["step"])


def test_the_order_of_the_members_does_not_matter(runs):
    one, other = (evaluate_ensemble(order, which="best", split="val") for order in (runs, runs[::-1]))
    assert one["accuracy"] == other["accuracy"]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
    names = [[(member["workdir"], member["step"]) for member in found["members"]] for found in (one, other)]
    assert names[0] == names[1][::-1]
    assert sorted(member["loss"] for member in one["members"]) == pytest.approx(
        sorted(member["loss"] for member in other["members"])
    )


def test_the_checkpoints_of_a_run_are_its_members(runs):
    found = evaluate_ensemble(runs[1:], which="snapshots", split="val")
    kept = sorted(int(path.name) for path in (runs[1] / "checkpoints").iterdir() if path.name.isdigit())
    assert [member["step"] for member in found["members"]] == kept and len(kept) >= 3
    recorded = {r["step"]: r["val_loss"] for r in read_records(runs[1] / "metrics.jsonl") if "val_loss" in r}
    assert [member["loss"] for member in found["members"]] == pytest.approx([recorded[step] for step in kept])


def test_a_damaged_checkpoint_is_no_member(runs, tmp_path):
    workdir = copy(runs[0], tmp_path / "run")
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    for path in (workdir / "checkpoints" / str(steps[0]) / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-7])
    found = evaluate_ensemble([workdir], which="snapshots", split="val")
    assert [member["step"] for member in found["members"]] == steps[1:]


def test_test_is_read_once_after_each_member_has_it_on_record(runs, monkeypatch):
    reads = []
    load = sources.load

    def watched(**kwargs):
        source = load(**kwargs)

        def open_test():
            reads.append([len(openings(workdir)) for workdir in runs])
            return source.open_test()

        return dataclasses.replace(source, open_test=open_test)

    before = [len(openings(workdir)) for workdir in runs]
    monkeypatch.setattr(sources, "load", watched)
    evaluate_ensemble(runs, which="best", split="val")
    assert reads == []
    found = evaluate_ensemble(runs, which="best", split="test")
    assert reads == [[count + 1 for count in before]]
    assert found["test_openings"] == {str(w): count + 1 for w, count in zip(runs, before, strict=True)}
    for workdir, member in zip(runs, found["members"], strict=True):
        last = openings(workdir)[-1]
        assert (last["by"], last["which"], last["step"]) == ("evaluate", "ensemble of best", member["step"])


def refused(workdirs, *, split, error, says):
    before = [openings(workdir) for workdir in workdirs]
    with pytest.raises(error, match=says) as caught:
        evaluate_ensemble(workdirs, which="best", split=split)
    assert "\n" not in str(caught.value)
    assert [openings(workdir) for workdir in workdirs] == before


@pytest.mark.parametrize("split", ["val", "test"])
def test_members_of_other_data_are_refused_before_test_is_opened(runs, other, split):
    says = "different train and validation splits or classes; choose runs with the same config.data"
    refused([runs[0], other], split=split, error=DataError, says=says)


@pytest.mark.parametrize("split", ["val", "test"])
def test_members_of_another_loss_are_refused_before_test_is_opened(runs, tmp_path, split):
    svm = copy(runs[0], tmp_path / "svm", **{"loss.name": "svm"})
    says = "svm has another config.loss than .*linear .name: softmax -> svm.*; choose runs with the same loss"
    refused([runs[0], svm], split=split, error=ConfigError, says=says)


def test_a_source_that_may_have_another_test_split_is_refused_for_test_alone(runs, tmp_path):
    """Of the synthetic source, another number of examples is another test split; no fingerprint is asked yet."""
    more = copy(runs[0], tmp_path / "more", **{"data.source.num_examples": 161})
    says = "another config.data.source than .*num_examples: 160 -> 161.*or --split=val"
    refused([runs[0], more], split="test", error=DataError, says=says)


def test_members_of_other_classes_are_refused(runs, tmp_path, monkeypatch):
    """One class more, of which there is no image, changes no pixel and no label."""
    load = sources.load

    def wider(**kwargs):
        source = load(**kwargs)
        return dataclasses.replace(source, class_names=(*source.class_names, "extra"))

    with monkeypatch.context() as patched:
        patched.setattr(sources, "load", wider)
        wide = fit(tmp_path / "wide", **{"horizon.epochs": 1.0})
    order = iter([load, wider])
    monkeypatch.setattr(sources, "load", lambda **kwargs: next(order)(**kwargs))
    refused([runs[0], wide], split="test", error=DataError, says="splits or classes")


def test_what_cannot_be_an_ensemble_is_one_line(runs, other, tmp_path):
    with pytest.raises(WorkdirError, match="linear is given twice; pass each member"):
        evaluate_ensemble([runs[0], runs[0].parent / "cnn" / ".." / "linear"], which="best", split="val")
    with pytest.raises(WorkdirError, match="nowhere holds no run"):
        evaluate_ensemble([runs[0], tmp_path / "nowhere"], which="best", split="val")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(WorkdirError, match="at least one run"):
        evaluate_ensemble([], which="best", split="val")
    with pytest.raises(ConfigError, match=f"{other} kept no moving average"):
        evaluate_ensemble([runs[0], other], which="ema", split="val")
    lost = copy(other, tmp_path / "lost")
    for folder in (lost / "checkpoints").glob("[0-9]*"):
        (folder / "metrics" / "metrics").write_text("")
    with pytest.raises(CheckpointError, match="every checkpoint in .* was damaged"):
        evaluate_ensemble([lost], which="snapshots", split="val")


def test_the_command_takes_a_workdir_several_times(runs):
    arguments = [f"--workdir={workdir}" for workdir in runs]
    command = [sys.executable, "-m", "scripts.evaluate", *arguments, "--which=snapshots"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = json.loads(done.stdout)
    assert found == evaluate_ensemble(runs, which="snapshots", split="val")
    assert {member["workdir"] for member in found["members"]} == {str(workdir) for workdir in runs}
