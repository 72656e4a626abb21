"""The cases of `bench diagnosis`: configs that learn, faults planted in them, and clean changes of many kinds.

A fault is planted in each network on each data set. Those that are `held_out`, faults and clean changes, were written
before the checks were tried on any of them, and nothing was corrected by them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from linseed.configs import digits
from linseed.trainer.config.changes import changed
from linseed.trainer.config.resolve import resolve

DATA = {
    "digits": dict(name="digits", test_fraction=0.2, split_seed=0),
    "patterns": dict(name="synthetic", num_examples=2400, num_classes=10, image_size=6, channels=1, seed=0),
}
ADAMW = dict(name="adamw", lr=1e-2, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2)
MOMENTUM = dict(name="momentum", lr=0.1, momentum=0.9, weight_decay=1e-4)
NETWORKS = {
    "cnn": (dict(name="cnn", widths=(16, 32), normalization="batch"), ADAMW),
    "mlp": (dict(name="mlp", widths=(64, 64), normalization="none"), MOMENTUM),
}


def base(network: str, data: str) -> ml_collections.ConfigDict:
    """A config that learns `data` in twelve epochs, without anything that a small network does not need."""
    model, optimizer = NETWORKS[network]
    config = resolve(digits.get_config())
    config.data.source = DATA[data]
    config.data.augment, config.data.val_fraction = "", 0.2
    config.model = dict(activation="relu", kernel_init="auto", dropout=0.0, **model)
    config.optimizer = dict(clip="global_norm", clip_norm=1.0, rules=("rest:",), lr_per_batch=0, **optimizer)
    config.label_smoothing, config.ema_decay = 0.0, 0.0
    config.schedule.warmup_epochs = 1.0
    config.horizon.epochs = 12.0
    config.log_every_steps = 10
    config.convolution = "xla"  # whose programs JAX's cache can keep
    return resolve(config)


class Fault(NamedTuple):
    """A planted fault. expected: keys of `findings.CAUSES`, any of which is right.

    changes: dotted keys of the config. source: of `plants.SOURCES`. model: of `plants.CHANGES`.
    """

    expected: Sequence[str]
    changes: Mapping[str, Any] = {}
    source: str = ""
    model: str = ""
    held_out: bool = False


def _pixels(*, mean, std):
    """Statistics of the one channel, on the 0..1 scale."""
    return {"data.mean": (mean,), "data.std": (std,)}


FAULTS = {
    # Data, labels, splits.
    "labels shuffled": Fault(("shuffled_labels",), source="shuffled_labels"),
    "30% of train labels wrong": Fault(("wrong_labels",), source="wrong_labels"),
    "30% of each class called the next": Fault(("wrong_labels",), source="next_labels", held_out=True),
    "40% of train blank": Fault(("conflicting_labels",), source="blank_images"),
    "validation inverted": Fault(("val_distribution",), source="inverted_validation"),
    "validation four times as dark": Fault(("val_distribution",), source="dark_validation", held_out=True),
    "classes of validation renamed": Fault(("val_distribution",), source="renamed_validation", held_out=True),
    "validation a copy of train": Fault(("leaked_validation",), source="copied_validation"),
    "a third of validation in train": Fault(("leaked_validation",), source="shared_validation", held_out=True),
    "split sorted by class": Fault(("val_distribution",), source="sorted_split"),
    # Normalisation.
    "pixels of 0 to 255": Fault(("input_scale",), _pixels(mean=0.0, std=1 / 255)),
    "statistics in 0 to 255": Fault(("input_scale",), _pixels(mean=78.0, std=96.0)),
    "normalised twice": Fault(("input_scale",), model="normalised_again"),
    "network divides by 255": Fault(("input_scale",), model="divided_by_255", held_out=True),
    # Schedule.
    "lr far too high": Fault(("lr_too_high",), {"optimizer.lr": 10.0}),
    "lr far too low": Fault(("lr_too_low",), {"optimizer.lr": 1e-5}),
    "step schedule ends at 10%": Fault(
        ("decayed_too_early",), {"schedule": dict(name="step", at_percent=(2.0, 10.0), warmup_steps=0)}
    ),
    "weights end at 5%": Fault(("decayed_too_early",), {"optimizer.rules": ("rest: until_percent=5",)}),
    # Optimiser.
    "decay 10": Fault(("decay_too_high",), {"optimizer.weight_decay": 10.0}),
    "regulariser 1000 times too strong": Fault(
        ("decay_too_high",), {"regularizer": dict(name="l2", strength=3.0)}, held_out=True
    ),
    "gradient clipped to 1e-4": Fault(("clip_too_low",), {"optimizer": MOMENTUM, "optimizer.clip_norm": 1e-4}),
    "momentum 0.999": Fault(("lr_too_high",), {"optimizer": {**MOMENTUM, "momentum": 0.999}}, held_out=True),
    # The network.
    "zero weights": Fault(("zero_weights",), model="zero_weights"),
    "init scale x 30": Fault(("bad_init",), model="init_30"),
    "dead ReLUs": Fault(("dead_units",), model="dead_relus"),
    "softmax twice": Fault(("double_softmax",), model="softmax_output"),
    "sigmoid before the softmax": Fault(("double_softmax",), model="sigmoid_output", held_out=True),
    "too small a net": Fault(("too_small", "underfit"), {"model.widths": (1,)}),
    # Augmentation and evaluation. A square of 16 pixels suits 32x32 images, these have 8x8 or 6x6.
    "augmentation hides the image": Fault(("augmentation",), {"data.augment": "pad_crop(1)|cutout(16)"}),
    "shifts almost as far as the image is wide": Fault(
        ("augmentation",), {"data.augment": "pad_crop(5)"}, held_out=True
    ),
    "images transposed in training only": Fault(("eval_mode",), model="transposed_in_training"),
}


class Clean(NamedTuple):
    """A change that is no fault."""

    network: str
    data: str
    changes: Mapping[str, Any] = {}
    held_out: bool = True


def _optimizer(name, lr, **more):
    return {"optimizer": dict(name=name, lr=lr, **more)}


def _mix(name, alpha):
    return {"data.mix": dict(name=name, alpha=alpha)}


CLEAN = {
    "cnn on digits": Clean("cnn", "digits", held_out=False),
    "cnn on patterns": Clean("cnn", "patterns", held_out=False),
    "mlp on digits": Clean("mlp", "digits", held_out=False),
    "mlp on patterns": Clean("mlp", "patterns", held_out=False),
    "mixup": Clean("cnn", "digits", _mix("mixup", 1.0), held_out=False),
    "cutmix": Clean("cnn", "patterns", _mix("cutmix", 1.0), held_out=False),
    "mixup, mlp": Clean("mlp", "digits", _mix("mixup", 0.2)),
    "cutmix, mlp": Clean("mlp", "patterns", _mix("cutmix", 1.0)),
    "mixup and smoothing": Clean("cnn", "patterns", {**_mix("mixup", 1.0), "label_smoothing": 0.1}),
    "rotated and shifted": Clean("cnn", "digits", {"data.augment": "pad_crop(1)|rotate(20)"}),
    "trivialaugment": Clean("cnn", "patterns", {"data.augment": "trivialaugment()"}),
    "brightness and contrast": Clean("mlp", "patterns", {"data.augment": "brightness(0.4)|contrast(0.4)"}),
    "cutout": Clean("cnn", "digits", {"data.augment": "cutout(3)"}),
    "erasing and shifts": Clean("mlp", "digits", {"data.augment": "pad_crop(1)|cutout(2)"}),
    "dropout": Clean("mlp", "digits", {"model.dropout": 0.5}),
    "dropout, cnn": Clean("cnn", "patterns", {"model.dropout": 0.5}),
    "smoothing": Clean("cnn", "digits", {"label_smoothing": 0.2}),
    "150 images": Clean("mlp", "digits", {"data.train_examples": 150, "horizon.epochs": 60.0}),
    "200 images": Clean("cnn", "patterns", {"data.train_examples": 200, "horizon.epochs": 40.0}),
    "sam": Clean("mlp", "digits", _optimizer("sam", 0.05)),
    "sam, cnn": Clean("cnn", "patterns", _optimizer("sam", 0.05)),
    "ema": Clean("cnn", "digits", {"ema_decay": 0.99}),
    "long ema": Clean("mlp", "patterns", {"ema_decay": 0.9999}),
    "sgd": Clean("mlp", "digits", _optimizer("sgd", 0.3)),
    "lion": Clean("cnn", "digits", _optimizer("lion", 1e-3)),
    "lamb": Clean("mlp", "patterns", _optimizer("lamb", 1e-2)),
    "adagrad": Clean("mlp", "digits", _optimizer("adagrad", 0.03)),
    "lookahead": Clean("mlp", "patterns", _optimizer("lookahead", 0.1)),
    "schedule-free": Clean(
        "mlp", "digits", {**_optimizer("schedule_free", 1e-2), "schedule": dict(name="constant", warmup_steps=20)}
    ),
    "step schedule": Clean("cnn", "digits", {"schedule": dict(name="step", at_percent=(50.0, 75.0), warmup_steps=0)}),
    "constant rate": Clean("mlp", "patterns", {"schedule": dict(name="constant", warmup_steps=0)}),
    "one cycle": Clean("cnn", "patterns", {"schedule": dict(name="one_cycle", warmup_steps=0)}),
    "warm restarts": Clean("cnn", "digits", {"schedule": dict(name="sgdr", warmup_steps=0)}),
    "inverse root": Clean("mlp", "digits", {"schedule": dict(name="inverse_sqrt", warmup_steps=20)}),
    "l2": Clean("mlp", "digits", {"regularizer": dict(name="l2", strength=5e-4)}),
    "hinge loss": Clean("cnn", "digits", {"loss": dict(name="svm")}),
    "sigmoid loss": Clean("mlp", "patterns", {"loss": dict(name="sigmoid")}),
    "pixels of 0 to 1": Clean("cnn", "digits", {"data.normalize": "none"}),
    "statistics of other photos": Clean("mlp", "digits", _pixels(mean=0.45, std=0.225)),
    "layer norm and tanh": Clean("mlp", "patterns", {"model.normalization": "layer", "model.activation": "tanh"}),
    "a rule that ends at 60%": Clean("cnn", "patterns", {"optimizer.rules": ("block1/.*: until_percent=60", "rest:")}),
}


def with_changes(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """`config` with `changes`, in their order; another optimiser keeps the clipping and the rules."""
    for key, value in changes.items():
        if key == "optimizer":
            value = {
                **{name: config.optimizer[name] for name in ("clip", "clip_norm", "rules", "lr_per_batch")},
                **value,
            }
        config = changed(config, {key: value})
    return resolve(config)
