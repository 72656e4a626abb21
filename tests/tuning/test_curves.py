"""The curve doctor on curves written from formulas: each cause is named, and a sound run gets no finding."""

import math

import ml_collections
import numpy as np
import pytest

from linseed.trainer.step import losses
from linseed.trainer.tuning.diagnosis import curves, floors
from linseed.trainer.tuning.diagnosis.curve import Accuracy, CleanPass
from linseed.trainer.tuning.diagnosis.findings import CAUSES

SEEDS = range(3)


def config(*, loss="softmax", smoothing=0.0, schedule="cosine", **changes):
    """A run's config, as much of it as the doctor reads. changes: `optimizer__lr=3.0` for `optimizer.lr`."""
    result = {
        "data": {"batch_size": 64, "train_examples": 0, "mix": {"name": "none"}, "augment": ""}
        | {"normalize": "channel_mean_std", "std": ()},
        "model": {"name": "cnn", "kernel_init": "auto", "normalization": "none"},
        "optimizer": {"name": "momentum", "lr": 0.02, "weight_decay": 0.0, "rules": ("rest:",)},
        "schedule": {"name": schedule},
        "horizon": {"epochs": 10.0},
        "loss": {"name": loss},
        "label_smoothing": smoothing,
    }
    for key, value in changes.items():
        section, name = key.split("__")
        result[section][name] = value
    return result


def records(*, loss, accuracy, val_loss=None, val_accuracy=None, rate=1.0, grad_norm=2.0, update_ratio=3e-3, **kwargs):
    """The records of a run from functions of t, 0..1 of it, or constants; validation is that of train unless given.

    classes, steps, every (steps a record), epochs, noise (of the loss of one step of 64), val_examples, seed.
    """
    span = dict(classes=10, steps=3000, every=50, epochs=10.0, noise=0.3, val_examples=2000, seed=0) | kwargs
    rng = np.random.default_rng(span["seed"])
    at = lambda curve, t: float(curve(t) if callable(curve) else curve)  # noqa: E731
    draw = lambda p, n: rng.binomial(n, min(1.0, max(0.0, p))) / n  # noqa: E731
    result = []
    for i, step in enumerate(range(span["every"], span["steps"] + 1, span["every"])):
        t = (step - span["every"] / 2) / span["steps"]
        level = at(loss, t)
        noise = rng.normal() * span["noise"] * min(1.0, level) / math.sqrt(span["every"])
        record = {
            "step": step,
            "epoch": step / span["steps"] * span["epochs"],
            "train_loss": level + noise,
            "train_accuracy": draw(at(accuracy, t), 64 * span["every"]),
            "lr": at(rate, t),
            "grad_norm": at(grad_norm, t),
            "update_ratio": at(update_ratio, t) * at(rate, t),
        }
        if i % 4 == 3:
            n, now = span["val_examples"], step / span["steps"]
            record |= {
                "val_loss": at(loss if val_loss is None else val_loss, now) * (1 + 0.01 * rng.normal()),
                "val_accuracy": draw(at(accuracy if val_accuracy is None else val_accuracy, now), n),
                "val_examples": n,
            }
        result.append(record)
    return result


def causes(run, *, classes=10, stopped="", clean=None, **settings):
    findings = curves.diagnose(run, num_classes=classes, config=config(**settings), stopped=stopped, clean=clean)
    assert all(finding.cause in CAUSES and finding.evidence and finding.remedy for finding in findings)
    return [finding.cause for finding in findings]


def judged(*, train, val):
    """The clean pass of checkpoints that are alike."""
    return CleanPass(*[Accuracy(train, 1000), Accuracy(val, 1000), None] * 2)


def cosine(t):
    return (1 + math.cos(math.pi * t)) / 2


def exponential(chance, *, speed=8, floor=0.02):
    return lambda t: floor * chance + (1 - floor) * chance * math.exp(-speed * t)


def power(chance, *, exponent=0.5):
    return lambda t: chance * (1 + 100 * t) ** -exponent


def learns(loss, chance, *, classes=10):
    """An accuracy that goes with a loss: chance at chance, 1 at 0."""
    return lambda t: 1 - (1 - 1 / classes) * min(1.0, loss(t) / chance)


SHAPES = {"exponential": exponential, "power": power}
RATES = {"constant": lambda t: 1.0, "cosine": cosine, "step": lambda t: 1.0 if t < 0.6 else 0.1}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rate", RATES)
def test_a_sound_run_gets_no_finding(rate, shape, classes, seed):
    chance = math.log(classes)
    loss = SHAPES[shape](chance)
    run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), rate=RATES[rate], classes=classes, seed=seed)
    for span in (
        {},
        {"steps": 400, "every": 20},
        {"steps": 600, "every": 5},
        {"steps": 20_000, "every": 400, "epochs": 90.0},
    ):
        for noise in (0.1, 0.5):
            assert causes(records(**run, **span, noise=noise), classes=classes, schedule=rate) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_warm_restarts_may_raise_the_loss(seed):
    cycle = lambda t: cosine(3 * t % 1)  # noqa: E731
    loss = lambda t: power(math.log(10))(t) + (0.4 * cycle(t) if t > 1 / 3 else 0.0)  # noqa: E731
    run = dict(accuracy=learns(loss, math.log(10)), rate=cycle, seed=seed)
    assert causes(records(loss=loss, **run), schedule="sgdr") == []


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_sound_run_of_every_loss(name, smoothing):
    smoothing = 0.0 if name == "svm" else smoothing
    chance = floors.chance_loss(name, num_classes=10)
    floor = floors.lowest_loss(name, num_classes=10, label_smoothing=smoothing)
    above = exponential(chance - floor)
    accuracy = learns(above, chance - floor)
    for seed in SEEDS:
        run = records(loss=lambda t: floor + above(t), accuracy=accuracy, rate=cosine, seed=seed)
        assert causes(run, loss=name, smoothing=smoothing) == []


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
@pytest.mark.parametrize("val", [0.45, 0.97])
def test_mixed_images_are_seldom_right_and_no_fault(mix, val):
    """The loss of mixed targets stands still above its unknown floor; the accuracy on mixed images is low."""
    loss = exponential(math.log(10), speed=20, floor=0.7)
    for seed in SEEDS:
        run = records(loss=loss, accuracy=0.35, val_loss=0.9, val_accuracy=val, rate=cosine, seed=seed)
        changes = dict(data__mix={"name": mix}, data__augment="pad_crop(1)")
        assert causes(run, **changes) == []
        assert causes(run, clean=judged(train=0.99, val=val), **changes) == []
        told = causes(run, clean=judged(train=0.3, val=0.3), **changes) if val < 0.5 else ["underfit"]
        assert "underfit" in told, "a network that knows few images as they are is too small all the same"


def test_heavy_augmentation_is_judged_by_images_as_they_are():
    loss = exponential(math.log(10), speed=20, floor=0.7)
    run = records(loss=loss, accuracy=0.4, val_loss=0.9, val_accuracy=0.7, rate=cosine)
    assert causes(run, clean=judged(train=0.75, val=0.7), data__augment="rotate(90)") == []


def test_a_modest_gap_is_no_alarm():
    """Validation a fifth above its lowest loss and 15 points behind: networks that do well look so."""
    loss = exponential(math.log(10))
    for seed in SEEDS:
        run = records(
            loss=loss,
            accuracy=learns(loss, math.log(10)),
            val_loss=lambda t: 0.8 + 1.5 * math.exp(-8 * t) + 0.12 * t,
            val_accuracy=lambda t: 0.85 - 0.7 * math.exp(-8 * t),
            rate=cosine,
            seed=seed,
        )
        assert causes(run) == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [10, 100])
class TestCauses:
    """One picture each: `first` is what must be said first."""

    def first(self, expected, *, classes, settings=None, **run):
        said = causes(records(classes=classes, **run), classes=classes, **(settings or {}))
        assert said[:1] == [expected], said
        return said

    def test_rate_too_low(self, classes, seed):
        chance = math.log(classes)
        loss = lambda t: chance * (1 - 0.3 * t)  # noqa: E731
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), update_ratio=1e-5)
        self.first("lr_too_low", classes=classes, seed=seed, **run)
        self.first(
            "lr_too_low", classes=classes, seed=seed, loss=chance * 1.02, accuracy=1 / classes, update_ratio=1e-6
        )

    def test_rate_too_high_diverges(self, classes, seed):
        """The loss falls, and then rises past chance."""
        chance = math.log(classes)
        loss = lambda t: chance * (1 - t if t < 0.4 else 0.6 + 3 * (t - 0.4))  # noqa: E731
        self.first("lr_too_high", classes=classes, seed=seed, loss=loss, accuracy=learns(loss, chance, classes=classes))

    def test_rate_too_high_falls_back_to_chance(self, classes, seed):
        chance = math.log(classes)
        loss = lambda t: chance * (1 - 2 * t if t < 0.2 else 1.0)  # noqa: E731
        self.first("lr_too_high", classes=classes, seed=seed, loss=loss, accuracy=learns(loss, chance, classes=classes))

    def test_rate_too_high_until_it_decays(self, classes, seed):
        chance = math.log(classes)
        loss = lambda t: chance * (0.97 if t < 0.6 else 0.97 - (t - 0.6))  # noqa: E731
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), rate=cosine, update_ratio=0.02)
        assert "bad_init" in self.first("lr_too_high", classes=classes, seed=seed, **run)

    def test_decayed_too_early(self, classes, seed):
        chance = math.log(classes)
        loss = lambda t: chance * (math.exp(-3 * t) if t < 0.2 else math.exp(-0.6) - 0.03 * (t - 0.2))  # noqa: E731
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), rate=lambda t: 1.0 if t < 0.2 else 0.1)
        self.first("decayed_too_early", classes=classes, seed=seed, settings={"schedule": "step"}, **run)

    @pytest.mark.parametrize("end", [0.05, 0.1])
    def test_a_rate_that_ends_so_early_that_little_moves(self, classes, seed, end):
        """Also where all updates together are short: the rate was sound while it lasted."""
        chance = math.log(classes)
        loss = lambda t: chance * (1 - 0.4 * min(t, end) / end - 0.01 * t)  # noqa: E731
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), rate=lambda t: 1.0 if t < end else 0.01)
        self.first("decayed_too_early", classes=classes, seed=seed, update_ratio=2e-4, **run)
        stuck = dict(loss=chance, accuracy=1 / classes, rate=run["rate"], update_ratio=2e-4)
        self.first("decayed_too_early", classes=classes, seed=seed, **stuck)

    @pytest.mark.parametrize("after", [0.0, 2e-4])
    def test_a_rule_that_ends_early(self, classes, seed, after):
        """The logged rate goes on; the updates do not, or only those of the other rules."""
        chance = math.log(classes)
        loss = lambda t: chance * (math.exp(-3 * t) if t < 0.2 else math.exp(-0.6) - 0.03 * (t - 0.2))  # noqa: E731
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), rate=cosine)
        run |= dict(update_ratio=lambda t: 3e-3 if t < 0.2 else after)
        settings = dict(optimizer__rules=(".*kernel: until_percent=20", "rest:"))
        self.first("decayed_too_early", classes=classes, seed=seed, settings=settings, **run)

    def test_wrong_train_labels_are_known_better_by_the_network(self, classes, seed):
        chance = math.log(classes)
        loss = exponential(chance, floor=0.5)
        run = dict(loss=loss, accuracy=lambda t: 0.68 * (1 - math.exp(-8 * t)), val_accuracy=0.95, rate=cosine)
        settings = dict(clean=judged(train=0.7, val=0.95))
        self.first("wrong_labels", classes=classes, seed=seed, settings=settings, **run)

    def test_a_network_that_evaluation_changes(self, classes, seed):
        chance = math.log(classes)
        loss = exponential(chance)
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), rate=cosine)
        run |= dict(val_accuracy=0.3, val_loss=2 * chance)
        said = self.first(
            "eval_mode", classes=classes, seed=seed, settings=dict(clean=judged(train=0.3, val=0.3)), **run
        )
        assert said == ["eval_mode"]

    def test_bad_init_stays_flat_and_then_drops(self, classes, seed):
        chance = math.log(classes)
        loss = lambda t: chance * (1.0 if t < 0.2 else max(0.05, math.exp(-8 * (t - 0.2))))  # noqa: E731
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes))
        self.first("bad_init", classes=classes, seed=seed, **run)

    def test_first_loss_far_above_chance(self, classes, seed):
        """The pixels first where the config gives its own statistics, else the weights; both are named."""
        chance = math.log(classes)
        loss = lambda t: chance * (0.02 + 8 * math.exp(-40 * t))  # noqa: E731
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), classes=classes, seed=seed)
        assert causes(records(**run), classes=classes)[:2] == ["bad_init", "input_scale"]
        assert causes(records(**run), classes=classes, data__std=(1 / 255,))[:2] == ["input_scale", "bad_init"]
        replaced = causes(records(**run, update_ratio=0.1), classes=classes)
        assert replaced[0] == "lr_too_high" and "bad_init" in replaced

    def test_plateau_at_a_constant_rate(self, classes, seed):
        chance = math.log(classes)
        loss = exponential(chance, speed=20, floor=0.3)
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes))
        self.first("plateau", classes=classes, seed=seed, settings={"schedule": "constant"}, **run)

    def test_underfit(self, classes, seed):
        chance = math.log(classes)
        loss = exponential(chance, speed=20, floor=0.7)
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), rate=cosine)
        assert self.first("underfit", classes=classes, seed=seed, **run) == ["underfit"]
        with_augmentation = causes(records(**run, classes=classes), classes=classes, data__augment="rotate(180)")
        assert set(with_augmentation) == {"underfit", "augmentation"}

    def test_overfit(self, classes, seed):
        chance = math.log(classes)
        loss = exponential(chance)
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), rate=cosine)
        run |= dict(
            val_loss=lambda t: chance * (0.5 + math.exp(-12 * t) + 0.6 * t), val_accuracy=lambda t: 0.5 * t**0.2
        )
        run |= dict(epochs=100.0)
        assert self.first("overfit", classes=classes, seed=seed, **run) == ["overfit"]

    def test_spike(self, classes, seed):
        chance = math.log(classes)
        loss = lambda t: exponential(chance)(t) + chance * (0.49 < t < 0.505)  # noqa: E731
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), rate=cosine)
        assert self.first("spike", classes=classes, seed=seed, **run) == ["spike"]

    def test_shuffled_labels_are_learnt_by_heart(self, classes, seed):
        """Train is at chance while its images are new, and rises after; validation stays at chance, its loss rises."""
        chance = math.log(classes)
        loss = lambda t: chance * min(1.0, 1.05 - t)  # noqa: E731
        run = dict(loss=loss, accuracy=lambda t: 1 / classes + max(0.0, t - 0.15), val_accuracy=1 / classes)
        said = self.first("shuffled_labels", classes=classes, seed=seed, val_loss=lambda t: chance * (1 + t), **run)
        assert said == ["shuffled_labels"]

    def test_validation_from_elsewhere(self, classes, seed):
        """No overfitting makes validation worse than train images are at their first sight."""
        chance = math.log(classes)
        loss = exponential(chance, speed=12)
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), epochs=4.0)
        run |= dict(val_loss=lambda t: chance * (1 + t), val_accuracy=0.4)
        assert self.first("val_distribution", classes=classes, seed=seed, **run) == ["val_distribution"]
        at_chance = self.first("val_distribution", classes=classes, seed=seed, **run | dict(val_accuracy=1 / classes))
        assert "shuffled_labels" in at_chance

    def test_softmax_twice(self, classes, seed):
        """The loss of probabilities taken for logits: its floor, and 1 more for each image given to a wrong class."""
        floor = floors.double_softmax_loss(num_classes=classes, label_smoothing=0.0)
        accuracy = lambda t: 0.95 - 0.85 * math.exp(-12 * t)  # noqa: E731
        run = dict(loss=lambda t: floor + 1 - accuracy(t), accuracy=accuracy, rate=cosine, noise=0.05)
        assert self.first("double_softmax", classes=classes, seed=seed, **run) == ["double_softmax"]

    def test_dead_units_and_a_signal_that_never_came(self, classes, seed):
        """At chance with the gradient of the last bias alone: dead if there was more, badly initialised if never."""
        chance, silence = math.log(classes), math.sqrt((1 - 1 / classes) / 64)
        run = dict(loss=chance, accuracy=1 / classes)
        dies = lambda t: 2.0 if t < 0.05 else silence  # noqa: E731
        self.first("dead_units", classes=classes, seed=seed, grad_norm=dies, **run)
        said = self.first("bad_init", classes=classes, seed=seed, grad_norm=silence, **run)
        assert "dead_units" in said

    def test_decay_outweighs_the_data(self, classes, seed):
        chance = math.log(classes)
        loss = exponential(chance, speed=20, floor=0.4)
        settings = dict(optimizer__name="adamw", optimizer__weight_decay=0.1)
        run = dict(loss=loss, accuracy=learns(loss, chance, classes=classes), rate=lambda t: 0.03 * cosine(t))
        self.first("decay_too_high", classes=classes, seed=seed, settings=settings, update_ratio=0.1, **run)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_named_with_its_causes(value):
    loss = exponential(math.log(10))
    run = records(loss=loss, accuracy=learns(loss, math.log(10)))
    assert causes(run, stopped="the loss of step 3001 is not finite")[:2] == ["non_finite", "lr_too_high"]
    assert causes([], stopped="the loss of step 1 is not finite")[:2] == ["non_finite", "lr_too_high"]
    assert causes([*run[:9], run[9] | {"train_loss": value}])[:2] == ["non_finite", "lr_too_high"]
    assert causes([run[0] | {"train_loss": value}])[:1] == ["non_finite"]
    assert causes([run[0] | {"update_ratio": value}, *run[1:]]) == []  # weights that start at zero


def test_a_short_run_says_nothing():
    for count in range(curves.FEWEST_RECORDS):
        assert causes(records(loss=math.log(10), accuracy=0.1)[:count]) == []
    assert causes(records(loss=math.log(10), accuracy=0.1, steps=90, every=5)) == []


def test_a_config_dict_is_as_good_as_its_json():
    run = records(loss=math.log(10), accuracy=0.1)
    expected = curves.diagnose(run, num_classes=10, config=config())
    assert expected and curves.diagnose(run, num_classes=10, config=ml_collections.ConfigDict(config())) == expected


def test_the_next_command_holds_flags_from_the_config():
    loss = lambda t: math.log(10) * (1 - 0.3 * t)  # noqa: E731
    run = records(loss=loss, accuracy=learns(loss, math.log(10)), update_ratio=1e-5)
    (finding,) = curves.diagnose(run, num_classes=10, config=config(optimizer__lr=3e-4))
    assert finding.remedy == "--config.optimizer.lr=0.003"


def test_validation_is_not_needed():
    loss = exponential(math.log(10))
    run = records(loss=loss, accuracy=learns(loss, math.log(10)), rate=cosine)
    bare = [{key: value for key, value in record.items() if not key.startswith("val_")} for record in run]
    assert causes(bare) == []
