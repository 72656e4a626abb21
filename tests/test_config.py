"""What a config may say: every wrong one is refused in one line that names the cure."""

import importlib
import inspect
import json
from pathlib import Path

import ml_collections
import pytest

from linseed import models
from linseed.configs import digits, variants
from linseed.trainer.config import ranges
from linseed.trainer.config import validate as config_lib
from linseed.trainer.errors import ConfigError

FILES = sorted(path.stem for path in Path(digits.__file__).parent.glob("*.py"))
EXPERIMENTS = [name for name in FILES if name not in ("__init__", "replay", "variants")]


def changed(**changes):
    config = digits.get_config()
    with config.unlocked():
        for key, value in changes.items():
            section, _, last = key.replace("__", ".").rpartition(".")
            target = config
            for part in filter(None, section.split(".")):
                target = target[part]
            if value is None:
                del target[last]
            else:
                target[last] = value
    return config


def refusal(config):
    with pytest.raises(ConfigError) as caught:
        config_lib.validate(config, models=models.MODELS)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("variant", ["", "quick"])
def test_every_config_is_valid(name, variant):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    config_lib.validate(config, models=models.MODELS)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("cifar10")])
def test_cifar_configs_read_tfds_or_a_folder(name):
    module = importlib.import_module(f"configs.{name}")
    assert module.get_config().data.source.name == "tfds"
    folder = module.get_config("root=/some/where")
    assert (folder.data.source.name, folder.data.source.root) == ("folder", "/some/where")
    config_lib.validate(folder, models=models.MODELS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_config_file_opens_with_what_it_is_and_its_command(name):
    doc = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config=configs/{name}.py" in doc and "Expected" in doc


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(sede=1), "unknown config key 'sede'; did you mean 'seed'?"),
        (dict(optimizer__weight_decey=0.1), "did you mean 'optimizer.weight_decay'?"),
        (dict(model__widhts=(3,)), "did you mean 'model.widths'?"),
        (dict(model__name="cnm"), "did you mean 'cnn'?"),
        (dict(optimizer__name="adamww"), "did you mean 'adamw'?"),
        (dict(schedule__name="cosin"), "did you mean 'cosine'?"),
        (dict(loss__name="softmx"), "did you mean 'softmax'?"),
        (dict(data__source__name="digit"), "did you mean 'digits'?"),
        (dict(data__augment="flip_rl(0.5)"), "flip_lr"),
        (dict(data__augment="flip_lr(2.0)"), "probability"),
        (dict(data__normalize="channel_std"), "'channel_mean_std'"),
        (dict(precision="float16"), "config.precision='float16' should be one of 'float32', 'bfloat16'"),
        (dict(parallel__backend="pjit"), "should be one of"),
        (dict(data__batch_size=-1), "config.data.batch_size=-1 should be a whole number, at least 0"),
        (dict(optimizer__rules=()), "tuple of strings such as ('rest:',)"),
        (dict(optimizer__rules=("head/.*: lr=x",)), "'x' should be a number, at least 0"),
        (dict(optimizer__clip="norm"), "should be one of 'adaptive', 'global_norm', 'value'"),
        (dict(regularizer__name="l3"), "unknown config.regularizer.name 'l3'; did you mean"),
        (dict(horizon__steps=100), "config.horizon.epochs and config.horizon.steps are one duration"),
        (dict(horizon__epochs=None), "config.horizon.steps is missing, or in another unit (epochs, examples, percent"),
        (dict(schedule__name="step"), "config.schedule.at_steps is missing"),
        (dict(schedule__warmup_parsecs=1.0), "unknown config key 'schedule.warmup_parsecs'"),
        (dict(data__batch_size=True), "whole number"),
        (dict(data__batch_size=10**12), "at most"),
        (dict(horizon__epochs=1e308), "in (0, 1e+12]"),
        (dict(optimizer__lr=-0.1), "config.optimizer.lr=-0.1 should be in (0, inf)"),
        (dict(optimizer__lr=float("nan")), "should be a number in (0, inf)"),
        (dict(optimizer__b1=1.0), "config.optimizer.b1=1.0 should be in [0, 1)"),
        (dict(label_smoothing=1.0), "should be in [0, 1)"),
        (dict(data__val_fraction=0.0), "should be in (0, 1)"),
        (dict(model__widths=()), "tuple of whole numbers"),
        (dict(model__dropout=1.0), "should be in [0, 1)"),
        (dict(seed=None), "config.seed is missing"),
        (dict(optimizer__b2=None), "config.optimizer.b2 is missing"),
        (dict(model__name=None), "config.model.name is missing; known: alexnet, cnn"),
        (dict(schedule__warmup_epochs=30.0), "config.schedule.warmup_epochs=30 is as long as the run"),
        (dict(data__mean=(0.5,)), "go together"),
        (dict(data__mean=(0.5,), data__std=(0.0,)), "should be above 0"),
        (dict(data__mean=(0.5,), data__std=(0.1,), data__normalize="none"), "need config.data.normalize"),
        (dict(optimizer__name="sgd"), "optimizer 'sgd': unknown config key 'optimizer.b1'; "),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(changes, says):
    assert says in refusal(changed(**changes))


def test_a_whole_section_missing_is_refused():
    config = digits.get_config()
    with config.unlocked():
        del config.early_stopping
    assert "config.early_stopping.min_delta is missing" in refusal(config)


def test_json_brings_back_what_ran():
    config = digits.get_config()
    again = ml_collections.ConfigDict(json.loads(config_lib.to_json(config)))
    config_lib.validate(again, models=models.MODELS)
    assert config_lib.to_json(again) == config_lib.to_json(config)
    assert config_lib.sha256(again) == config_lib.sha256(config)
    assert config_lib.differences(again, config) == []


def test_differences_name_the_keys_and_both_values():
    new = changed(optimizer__lr=0.5, extra=1)
    assert config_lib.differences(digits.get_config(), new) == ["extra: absent -> 1", "optimizer.lr: 0.003 -> 0.5"]
    assert config_lib.sha256(new) != config_lib.sha256(digits.get_config())


def test_variants_are_parsed_and_unknown_ones_refused():
    assert variants.parse("quick,root=/a/b", quick=False, root="") == {"quick": True, "root": "/a/b"}
    assert variants.parse("", quick=False) == {"quick": False}
    with pytest.raises(ValueError, match="unknown config variant 'quik'; known: quick, root"):
        variants.parse("quik", quick=False, root="")


def test_every_numeric_parameter_of_every_entry_has_a_range():
    """A new entry whose parameter has no range would be checked by nobody."""
    for section, table in {**config_lib.TABLES, "model": models.MODELS}.items():
        for name, builder in table.items():
            for parameter in inspect.signature(builder).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in config_lib.SUPPLIED.get(
                    section, ()
                ):
                    assert parameter.name in ranges.PARAMETERS, f"{section} {name}: {parameter.name}"


def test_config_files_need_no_backend():
    for name in EXPERIMENTS:
        source = (Path(digits.__file__).parent / f"{name}.py").read_text()
        imports = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
        assert set(imports) <= {"import ml_collections", "from linseed.configs import variants"}, name
    assert isinstance(digits.get_config(), ml_collections.ConfigDict)
