"""The further keys of a study: what `--search` may say, and what the storage makes of a value."""

import optuna
import pytest

from linseed.configs import base, digits
from linseed.trainer.config.changes import changed
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import ConfigError
from linseed.trainer.tuning import space
from linseed.trainer.tuning.space import Choice, Range


def config(**changes):
    given = changed(digits.get_config(), {"model": {"name": "mlp", "widths": (16,)}})
    return resolve(changed(given, {key.replace("__", "."): value for key, value in changes.items()}))


def read(*texts, **changes):
    return space.read(texts, config(**changes))


def test_a_range_has_the_type_of_its_key():
    found, horizons = read(
        "model.dropout=0..0.5",
        "optimizer.clip_norm=1e-4..1:log",
        "accumulation_parts=1..4",
        "label_smoothing= .1 .. .2 ",
    )
    assert found == {
        "model.dropout": Range(0.0, 0.5),
        "optimizer.clip_norm": Range(1e-4, 1.0, log=True),
        "accumulation_parts": Range(1, 4, whole=True),
        "label_smoothing": Range(0.1, 0.2),
    }
    assert type(found["accumulation_parts"].low) is int and type(found["model.dropout"].low) is float
    assert not horizons


def test_a_list_is_split_where_no_bracket_or_quote_is_open():
    augment = "data.augment='flip_lr(0.5)',,color_jitter(0.2, 0.2, 0.2)|flip_lr(0.5)"
    found, horizons = read(augment, "model.widths=(16,32),(64,)", "data.mix.name=none,mixup", "horizon.epochs=20,5")
    assert found == {
        "data.augment": Choice(("flip_lr(0.5)", "", "color_jitter(0.2, 0.2, 0.2)|flip_lr(0.5)")),
        "model.widths": Choice(([16, 32], [64])),
        "data.mix.name": Choice(("none", "mixup")),
    }
    assert horizons == [{"epochs": 5.0}, {"epochs": 20.0}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model.dropout", "should read KEY=LOW"),
        ("=0..1", "should read KEY=LOW"),
        ("model.dropuot=0..0.5", "did you mean 'model.dropout'"),
        ("modle.dropout=0..0.5", "unknown config key 'modle.dropout'"),
        ("model.dropout=0..1", r"dropout=1 should be a number in \[0, 1\)"),
        ("model.dropout=0..much", "dropout='0..much' should be a number"),
        ("accumulation_parts=0.5..2", "accumulation_parts=0.5 should be a whole number"),
        ("model.dropout=0.5..0.1", "should rise from LOW to HIGH"),
        ("model.dropout=0..0.5:log", "from above 0"),
        ("model.dropout=0.1", "at least two values, each once"),
        ("model.dropout=0.1,0.10", "at least two values, each once"),
        ("data.augment=flip_lr(0.5),flip_rl(0.5)", "did you mean 'flip_lr'"),
        ("head_init=random,porbe", "did you mean 'probe'"),
        ("batch_norm.frozen=0..1", "should be True or False"),
        ("optimizer.lr=1e-4..1:log", "is always searched; set the grid of step 4 by --rates"),
        ("optimizer.weight_decay=0,1", "--decays"),
        ("optimizer.name=sgd,adamw", "a learning rate of its own"),
        ("horizon.epochs=5..20", "each length is a final run"),
        ("horizon.epochs=5,0", r"should be a number in \(0, "),
        ("seed=1,2", "compare its values by whole runs"),
        ("data.batch_size=16,32", "compare its values by whole runs"),
        ("data.source.seed=0,1", "compare its values by whole runs"),
        ("schedule.warmup_epochs=0,1", "compare its values by whole runs"),
        ("eval.monitor=loss,accuracy", "compare its values by whole runs"),
    ],
)
def test_wrong_input_is_one_line_that_names_the_key(text, says):
    with pytest.raises(ConfigError, match=says) as refused:
        read(text)
    assert "\n" not in str(refused.value) and f"--search={text.partition('=')[0]}" in str(refused.value)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (("model.dropout=0..0.5", "model.dropout=0.1,0.2"), "given twice"),
        (("horizon.epochs=5,10", "horizon.steps=50,100"), "given twice"),
        (("data.mix.name=mixup,none", "data.mix.alpha=0.1..1"), "a parameter of one data.mix.name alone"),
    ],
)
def test_keys_that_exclude_each_other_are_one_line(texts, says):
    with pytest.raises(ConfigError, match=says):
        read(*texts, data__mix={"name": "mixup"})


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        (Range(0.0, 0.5), (0.0, 0.25)),
        (Range(1e-4, 1.0, log=True), (0.0, 1e-4, 0.3)),
        (Range(1, 4, whole=True), (1, 3)),
        (Choice(("", "flip_lr(0.5)", [16, 32], True, 0.5)), ("", [16, 32], True, 0.5)),
    ],
)
def test_what_is_stored_comes_back_in_its_type(axis, values):
    for value in values:
        stored = axis.distribution.to_external_repr(axis.distribution.to_internal_repr(axis.stored(value)))
        assert axis.restored(stored) == value and type(axis.restored(stored)) is type(value)


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=0)])
def test_drawn_values_lie_within_the_axis_and_reach_its_ends(sampler):
    study = optuna.create_study(sampler=sampler)
    axes = {"whole": Range(1, 3, whole=True), "log": Range(1e-4, 1e-2, log=True), "choice": Choice(("a", [1]))}
    drawn = []
    for _ in range(40):
        trial = study.ask()
        drawn.append({key: axis.draw(trial, key) for key, axis in axes.items()})
    assert {point["whole"] for point in drawn} == {1, 2, 3}
    assert all(1e-4 <= point["log"] <= 1e-2 for point in drawn) and min(point["log"] for point in drawn) < 1e-3
    assert {str(point["choice"]) for point in drawn} == {"a", "[1]"}


def test_a_pretrained_config_whose_layers_all_train_has_further_keys_of_its_own():
    assert space.suited(config()) == [] == space.suited(resolve(base.get_config()))
    fine = config(pretrained="weights.safetensors", data__augment="flip_lr(0.3)", horizon={"epochs": 9.0})
    found, horizons = space.read(space.suited(fine), fine)
    assert list(found) == ["optimizer.layer_decay", "data.augment"] and "flip_lr(0.3)" in found["data.augment"].values
    assert horizons == [{"epochs": 3.0}, {"epochs": 9.0}]
    frozen = changed(fine, {"optimizer.rules": ("head/.*:", "rest: frozen")})
    assert space.suited(resolve(frozen)) == []
