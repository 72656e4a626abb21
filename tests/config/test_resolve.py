"""What a config may say: what it leaves out has a default, and every wrong one is refused in one line with its cure."""

import importlib
import inspect
import json
from pathlib import Path
from typing import Annotated

import ml_collections
import pytest

from linseed import configs, ranges
from linseed.configs import base, variants
from linseed.ranges import Between
from linseed.trainer import programs
from linseed.trainer.config import canonical, sections
from linseed.trainer.config.changes import changed, read
from linseed.trainer.config.fields import FIELDS
from linseed.trainer.config.pages import read_page
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import ConfigError

FOLDER = Path(configs.__path__[0])
EXPERIMENTS = sorted(
    path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base", "replay", "variants")
)


def digits(**changes):
    return changed(read_page("digits"), {key.replace("__", "."): value for key, value in changes.items()})


def refusal(config):
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_page_with_each_of_its_words_is_valid(name):
    page = importlib.import_module(f"linseed.configs.{name}")

    def config(variant=""):
        config = page.get_config(variant)
        if config.model.name == "pretrained":  # which the weights say, and of what
            config = changed(config, {"model.name": "cnn", "data.mean": (0.5,) * 3, "data.std": (0.5,) * 3})
        if config.data.source.name.startswith("folder"):
            config.data.source.root = config.data.source.get("root", "/else/where")
        return canonical.to_json(resolve(config))

    for word, changes in page.VARIANTS.items():
        assert config(f"{word}=/some/where" if callable(changes) else word) != config(), word


@pytest.mark.parametrize(
    "name",
    [name for name in EXPERIMENTS if "root" in inspect.getsource(importlib.import_module(f"linseed.configs.{name}"))],
)
def test_image_pages_read_tfds_or_a_folder(name):
    folder = read_page(f"{name}:root=/some/where")
    assert folder.data.source.name.startswith("folder") and folder.data.source.root == "/some/where"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_page_opens_with_what_it_is_and_its_command_and_states_differences_alone(name):
    page = importlib.import_module(f"linseed.configs.{name}")
    assert f"--config=configs/{name}.py" in page.__doc__ and "Expected" in page.__doc__
    source = inspect.getsource(page)
    imports = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert all(line.startswith("from linseed.configs import ") for line in imports)
    assert len(source.splitlines()) < 100


def test_the_base_page_shows_every_plain_key():
    shown = {sections.in_steps(key) for key, _ in canonical.flatten(base.get_config())}
    assert shown == (set(FIELDS) | {f"{section}.name" for section in sections.TABLES}) - {"optimizer.lr"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(sede=1), "unknown config key 'sede'; did you mean 'seed'?"),
        (dict(optimizer__weight_decey=0.1), "did you mean 'optimizer.weight_decay'?"),
        (dict(model__widhts=(3,)), "model 'cnn': unknown config key 'model.widhts'; did you mean 'model.widths'?"),
        (dict(model__name="cnm"), "unknown config.model.name 'cnm'; did you mean 'cnn'?"),
        (dict(optimizer__name="adamww"), "did you mean 'adamw'?"),
        (dict(schedule__name="cosin"), "did you mean 'cosine'?"),
        (dict(loss__name="softmx"), "did you mean 'softmax'?"),
        (dict(data__source__name="digit"), "did you mean 'digits'?"),
        (dict(data__augment="flip_rl(0.5)"), "flip_lr"),
        (dict(data__augment="flip_lr(2.0)"), "probability"),
        (dict(data__normalize="channel_std"), "did you mean 'channel_mean_std'?"),
        (dict(precision="float16"), "config.precision='float16' should be one of 'float32', 'bfloat16'"),
        (dict(parallel__backend="pjit"), "should be one of"),
        (dict(data__batch_size=-1), "config.data.batch_size=-1 should be a whole number in [0, 1.04858e+06]"),
        (dict(optimizer__rules=()), "config.optimizer.rules=() should be a tuple of at least 1"),
        (dict(optimizer__rules=("head/.*: lr=x",)), "'x' should be a number, at least 0"),
        (dict(optimizer__clip="norm"), "should be one of 'adaptive', 'global_norm', 'value'"),
        (dict(regularizer__name="l3"), "unknown config.regularizer.name 'l3'; did you mean"),
        (dict(schedule__warmup_parsecs=1.0), "unknown config key 'schedule.warmup_parsecs'"),
        (dict(data__batch_size=True), "whole number"),
        (dict(data__batch_size=10**12), "in [0, "),
        (dict(horizon__epochs=1e308), "in (0, 1e+12]"),
        (dict(optimizer__lr=-0.1), "config.optimizer.lr=-0.1 should be a number above 0"),
        (dict(optimizer__lr="fast"), "config.optimizer.lr='fast' should be a number above 0"),
        (dict(optimizer__lr=float("nan")), "should be a number above 0"),
        (dict(optimizer__b1=1.0), "config.optimizer.b1=1.0 should be a number in [0, 1)"),
        (dict(label_smoothing=1.0), "in [0, 1)"),
        (dict(data__val_fraction=0.0), "in (0, 1)"),
        (dict(model__widths=()), "should be a tuple of at least 1"),
        (dict(model__widths=(4, 0)), "a tuple whose items are each a whole number"),
        (dict(model__dropout=1.0), "in [0, 1)"),
        (dict(data__source={"name": "folder"}), "config.data.source.root is missing; set it, such as"),
        (dict(schedule__warmup_epochs=30.0), "config.schedule.warmup_epochs=30 is as long as the run"),
        (dict(data__mean=(0.5,)), "go together"),
        (dict(data__mean=(0.5,), data__std=(0.0,)), "should be above 0"),
        (dict(data__mean=(0.5,), data__std=(0.1,), data__normalize="none"), "need config.data.normalize"),
        (dict(optimizer={"name": "sgd", "b1": 0.9}), "optimizer 'sgd': unknown config key 'optimizer.b1'; "),
        (dict(plugins=("mine",)), "this config uses the plugin 'mine', which is not loaded; add --plugin=mine"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(changes, says):
    assert says in refusal(digits(**changes))


def test_one_duration_in_two_units_is_refused():
    config = digits()
    config.horizon.steps = 100
    assert "config.horizon.epochs and config.horizon.steps are one duration" in refusal(config)


def test_what_is_left_out_has_the_default_of_the_base_page_or_of_the_entry():
    config = resolve({"data": {"source": {"name": "digits"}}, "optimizer": {"name": "nesterov"}})
    assert config.horizon.epochs == base.get_config().horizon.epochs
    assert config.optimizer.momentum == 0.9 and config.optimizer.lr > 0 and config.optimizer.clip_norm == 0.0
    assert config.data.source.test_fraction == 0.2
    assert canonical.to_json(resolve(config)) == canonical.to_json(config) and config.is_locked


@pytest.mark.parametrize("section", sections.TABLES)
def test_every_name_brings_its_own_defaults_on_any_page(section):
    required = {"data.source": {"folder": "root", "folder_stream": "root", "npz": "path"}}
    for name in sections.TABLES[section]:
        changes = {f"{section}.name": name}
        if key := required.get(section, {}).get(name):
            changes[f"{section}.{key}"] = "/some/where"
        if name == "weighted_softmax":
            changes["loss.class_weights"] = (1.0,) * 10
        if name == "lbfgs":
            changes |= {"data.batch_size": 0, "data.augment": ""}
        config = resolve(digits(**changes))
        own = sections.parameters(section, name)
        given = {sections.in_steps(key) for key, _ in canonical.flatten(config) if key.startswith(f"{section}.")}
        assert set(own) <= given, name


def test_another_name_takes_the_old_entrys_parameters_away_and_keeps_the_sections_own():
    config = resolve(digits(optimizer__name="sgd", optimizer__clip_norm=2.0))
    assert "b1" not in config.optimizer and config.optimizer.clip_norm == 2.0
    assert config.optimizer.lr != read_page("digits").optimizer.lr  # AdamW's rate is not one of SGD
    same = resolve(digits(optimizer__name="adamw"))
    assert same.optimizer.lr == read_page("digits").optimizer.lr
    assert resolve(digits(horizon__steps=20)).horizon.to_dict() == {"steps": 20}


def test_flags_are_read_in_the_type_of_their_key():
    texts = {
        "optimizer.name": "lion",
        "optimizer.b1": "0.8",
        "model.widths": "(4, 8)",
        "data.augment": "",
        "horizon.steps": "20",
        "data.source.name": "folder",
        "data.source.root": "123",
        "optimizer.rules": "('rest:',)",
        "precision": "'bfloat16'",
    }
    config = resolve(changed(digits(), read(digits(), texts)))
    assert (config.optimizer.name, config.optimizer.b1) == ("lion", 0.8)
    assert config.model.widths == (4, 8) and config.data.augment == "" and config.horizon.to_dict() == {"steps": 20}
    assert config.data.source.root == "123" and config.precision == "bfloat16"


def test_json_brings_back_what_ran(monkeypatch):
    config = resolve(digits())
    again = resolve(ml_collections.ConfigDict(json.loads(canonical.to_json(config))))
    assert canonical.to_json(again) == canonical.to_json(config)
    assert canonical.sha256(again) == canonical.sha256(config)
    assert canonical.differences(again, config) == []
    # Also once a default has changed.
    page = base.get_config

    def other():
        config = page()
        config.eval.batch_size = 17
        return config

    monkeypatch.setattr(base, "get_config", other)
    assert resolve(digits()).eval.batch_size == 17
    assert canonical.to_json(resolve(again)) == canonical.to_json(config)


def test_differences_name_the_keys_and_both_values():
    old, new = resolve(digits()), resolve(digits(optimizer__lr=0.5, seed=7))
    assert canonical.differences(old, new) == ["optimizer.lr: 0.003 -> 0.5", "seed: 0 -> 7"]
    assert canonical.sha256(new) != canonical.sha256(old)


def test_words_of_a_page_are_applied_and_wrong_ones_refused():
    words = {
        "few": {"a": 1},
        "more": {"a": 2},
        "root": lambda root: {"b.c": root},
        "quick": {"a": 3},
    }

    def applied(variant):
        return variants.apply(ml_collections.ConfigDict({"a": 0, "b": {"c": ""}}), variant, words).to_dict()

    assert applied("") == {"a": 0, "b": {"c": ""}}
    assert applied("root=/a/b,few") == {"a": 1, "b": {"c": "/a/b"}}
    assert applied("quick,few")["a"] == 3
    for wrong, says in [
        ("quik", "unknown config variant 'quik'; known: few, more, quick, root"),
        ("root", "write root=VALUE"),
        ("few=1", "write few"),
        ("few,more", "'few' and 'more' both set a; keep one"),
        (
            "root=/a,b",
            "unknown config variant 'b'.*if the comma belongs to root=/a,b, give flags .* '--config.b.c=/a,b'$",
        ),
    ]:
        with pytest.raises(ValueError, match=says):
            applied(wrong)


def test_every_parameter_of_every_entry_has_a_range_and_its_default_is_in_it():
    for section, table in sections.TABLES.items():
        for name in table:
            for key, (annotation, (_, default)) in sections.parameters(section, name).items():
                if default is not sections.REQUIRED:
                    ranges.convert(default, annotation)
                else:
                    with pytest.raises(ranges.RangeError):
                        ranges.convert(object(), annotation)
                assert key.startswith(f"{section}.")


def test_a_parameter_without_a_range_is_told_where_to_put_it(monkeypatch):
    def plain(*, num_classes, compute, depth=3): ...

    monkeypatch.setitem(sections.TABLES["model"], "plain", plain)
    assert "'depth' of model 'plain' has no range; annotate it at its definition: depth: Annotated" in refusal(
        digits(model__name="plain")
    )

    def ranged(*, num_classes, compute, depth: Annotated[int, Between(1, 9)] = 3): ...

    monkeypatch.setitem(sections.TABLES["model"], "ranged", ranged)
    assert resolve(digits(model__name="ranged")).model.depth == 3
    assert "config.model.depth=10 should be a whole number in [1, 9]" in refusal(
        digits(model__name="ranged", model__depth=10)
    )


# What changes a program. A key that is neither here nor in NOT_IN_PROGRAMS was forgotten: decide which it is.
IN_PROGRAMS = {
    *(
        "accumulation_parts",
        "batch_norm.frozen",
        "batch_norm.running_variance",
        "convolution",
        "data.augment",
        "data.mean",
    ),
    *("data.normalize", "data.std", "ema_decay"),
    *("eval.views", "guard.on_non_finite", "label_smoothing", "log_every_steps", "optimizer.clip"),
    *(
        "optimizer.clip_norm",
        "optimizer.layer_decay",
        "optimizer.rules",
        "parallel.backend",
        "precision",
        "remat",
        "steps_per_call",
    ),
}


def test_every_key_is_known_to_change_programs_or_not_to():
    assert {key for key in FIELDS if programs.matters(key)} == IN_PROGRAMS
    for section in ("model", "optimizer", "loss", "regularizer", "data_init", "data.mix"):
        for name in sections.TABLES[section]:
            own = set(sections.parameters(section, name)) - {"optimizer.lr", "optimizer.weight_decay"}
            assert all(map(programs.matters, own)) and programs.matters(f"{section}.name")
    assert not programs.matters("horizon.epochs") and not programs.matters("eval.every_percent")


@pytest.mark.parametrize(
    ("count", "network", "batch_size", "epochs"),
    [(0, "speednet", 16, 100), (244, "speednet", 16, 100), (3_000, "speednet", 128, 55), (30_000, "speednet", 256, 17)]
    + [(200_000, "resnet18", 256, 15)],
)
def test_the_page_of_a_folder_suits_the_number_of_its_photos(tmp_path, monkeypatch, count, network, batch_size, epochs):
    (tmp_path / "train" / "ants").mkdir(parents=True)
    monkeypatch.setattr("os.walk", lambda root: [(root, ["ants"], []), (f"{root}/ants", [], ["photo.jpg"] * count)])
    config = resolve(read_page(f"folder:root={tmp_path}"))
    assert (config.model.name, config.data.batch_size, config.horizon.epochs) == (network, batch_size, epochs)
