"""A study with further keys, from the weights of others, on a folder of photos: all steps."""

import importlib.util
import json

import pytest
from support.runs import SHARED

from linseed import api
from linseed.trainer.config import canonical
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import ConfigError, WorkdirError
from linseed.trainer.run.console import Quiet
from linseed.trainer.tuning import budget, trials, tune
from linseed.trainer.weights import features

SEARCH = ("model.dropout=0..0.5", "data.augment=,flip_lr(0.5)", "horizon.epochs=4,8")


pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture(scope="module")
def place(photos_and_weights):
    return photos_and_weights


def config(place, page="finetune"):
    small = {"data.source.image_size": 16, "data.batch_size": 8, "eval.batch_size": 16, "convolution": "xla"}
    return api.load_config(f"{page}:root={place / 'photos'},weights={place / 'tiny.safetensors'}", small)


class Lines(Quiet):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def run(config, workdir, *, further=SEARCH, step="all", writer=None, **options):
    keys = dict(storage="", study="study", sampler="tpe", rates=(1e-3, 1e-2), decays=(0.01, 0.0), name="finetune")
    keys |= dict(shared=SHARED) | options
    limit = budget.parse("4000steps")
    return tune.tune(config, workdir, step=step, budget=limit, further=further, writer=writer or Quiet(), **keys)


@pytest.fixture(scope="module")
def study(place, tmp_path_factory):
    workdir, calls = tmp_path_factory.mktemp("study"), []
    with pytest.MonkeyPatch.context() as patched:
        computed = features.computed

        def counted(split, *args, **keys):
            calls.append(split)
            return computed(split, *args, **keys)

        patched.setattr(features, "computed", counted)
        writer = Lines()
        record = run(config(place), workdir, writer=writer)
    return record, workdir, calls, writer.lines


def test_a_study_of_pretrained_weights_takes_all_steps_without_an_alarm(study):
    record, _, calls, _ = study
    assert {step["name"] for step in record["steps"]} == {*tune.STEPS, "loop"} - {"final"}
    assert not record["steps"][0]["findings"]  # the fitted head knows the classes before training
    assert len(calls) <= 4  # features: of train, its two parts in steps 2 and 3, and validation


def test_step_5_draws_the_further_keys_and_everything_shows_them(study):
    record, workdir, _, lines = study
    searched = [trial for trial in record["trials"] if trial["phase"] in ("coarse", "refine", "final")]
    own = {"model.dropout": 0.0, "data.augment": "flip_lr(0.5)"}
    assert all(trial["further"] == own for trial in searched if trial["phase"] == "coarse")
    drawn = [trial["further"] for trial in searched if trial["phase"] == "refine" and trial["further"] != own]
    assert len(drawn) >= 8 and {point["data.augment"] for point in drawn} == {"", "flip_lr(0.5)"}
    for trial in searched:
        found = json.loads((trials.folder(workdir, trial["workdir"]) / "config.json").read_text())
        assert found["model"]["dropout"] == trial["further"]["model.dropout"]
        assert found["data"]["augment"] == trial["further"]["data.augment"]
    assert any("model.dropout" in line and "val acc" in line for line in lines)
    assert "<th>model.dropout</th>" in (workdir / "study.html").read_text()


def test_the_lengths_are_final_runs_and_the_winner_is_a_config_that_runs(study, place):
    record, workdir, _, _ = study
    finals = [trial for trial in record["trials"] if trial["phase"] == "final"]
    assert [round(trial["rungs"][-1]["epochs"]) for trial in finals] == [4, 8]
    spec = importlib.util.spec_from_file_location("winner", workdir / "winner.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = resolve(module.get_config())
    assert canonical.differences(config(place), found) == record["winner"]["differences"]
    assert found.model.dropout == record["winner"]["further"]["model.dropout"]


def test_the_study_goes_on_with_its_own_search_and_refuses_another(study, place, monkeypatch):
    record, workdir, _, _ = study
    monkeypatch.setattr(trials, "train_and_evaluate", None)  # nothing is left to train
    assert run(config(place), workdir, further=None)["trials"] == record["trials"]
    with pytest.raises(WorkdirError, match="other --rates, --decays, --sampler or --search"):
        run(config(place), workdir, further=())
    url = f"sqlite:///{workdir / 'trials.db'}"
    with pytest.raises(ConfigError, match="another config or another --search"):
        run(config(place), workdir.parent / "other", further=SEARCH[:1], storage=url)


def test_a_probe_is_refused_with_what_to_run(place, tmp_path):
    with pytest.raises(ConfigError, match="freeze all weights.*the page finetune"):
        run(config(place, "probe"), tmp_path)


def test_a_value_that_does_not_fit_the_images_is_refused_before_the_first_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "train_and_evaluate", None)
    source = dict(name="synthetic", num_examples=64, num_classes=4, image_size=8, channels=3)
    model = {"name": "vit", "patch_size": 4}
    vit = api.load_config("digits", {"data.source": source, "data.augment": "", "model": model})
    with pytest.raises(ConfigError, match="--search=model.patch_size: .*does not fit 8x8x3 images"):
        run(vit, tmp_path, further=["model.patch_size=4,16"])
