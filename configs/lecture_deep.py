"""The lecture on deep networks, in handwritten digits or CIFAR-10: activation, initialiser, BatchNorm.

Ten hidden layers of 64, ReLU, Kaiming, no normalisation, momentum SGD; each word after the colon changes one thing,
and words add up: `:deeper,xavier`. Expected: 96 % on validation without a word; docs/lecture.md has the others. Each
run takes 6 to 15 seconds on one CPU core.

    python -m scripts.train --config=configs/lecture_deep.py --workdir=runs/deep
    python -m scripts.train --config=configs/lecture_deep.py:sigmoid --workdir=runs/deep_sigmoid

`:quick` trains for 50 steps; `:cifar10` trains for 2,000 on CIFAR-10 from TFDS, with `root=DIR` from class folders.
"""

import ml_collections

from linseed.configs import variants

CIFAR10 = {"data.val_fraction": 0.1, "eval.every_steps": 500, "horizon.steps": 2000}

VARIANTS = {
    "batchnorm": {"model.normalization": "batch"},
    "deeper": {"model.widths": (64,) * 20},
    "high_rate": {"optimizer.lr": 0.1},
    "sigmoid": {"model.activation": "sigmoid", "model.init": "xavier_normal"},
    "xavier": {"model.init": "xavier_normal"},
}


def get_config(variant=""):
    options = variants.parse(variant, quick=False, cifar10=False, root="", **dict.fromkeys(VARIANTS, False))
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.precision = "float32"
    config.convolution = "auto"  # oneDNN where that was proven to work here; "xla": never
    config.parallel = dict(backend="pmap")

    # Data. A large validation split: these runs are compared on it, and differ by little.
    config.data = dict(
        source=dict(name="digits", test_fraction=0.2, split_seed=0),
        val_fraction=0.3,
        split_seed=0,
        train_examples=0,  # of train, for training; 0: all
        placement="auto",  # of the train images: on the devices where they fit, else on the host
        batch_size=32,
        augment="",
        mix=dict(name="none"),
        normalize="channel_mean_std",
        mean=(),
        std=(),
    )

    # Model.
    config.model = dict(
        name="mlp", widths=(64,) * 10, activation="relu", init="kaiming_normal", normalization="none", dropout=0.0
    )
    config.data_init = dict(name="none")

    # Optimiser. Nothing that would hide a bad start: no decay, no clipping, no warm-up.
    config.optimizer = dict(
        name="momentum",
        lr=0.01,
        momentum=0.9,
        weight_decay=0.0,
        clip="global_norm",
        clip_norm=0.0,
        rules=("rest:",),
        lr_per_batch=0,
    )
    config.schedule = dict(name="cosine", warmup_steps=0)
    config.horizon = dict(steps=600)
    config.accumulation_parts = 1
    config.remat = "none"
    config.loss = dict(name="softmax")
    config.regularizer = dict(name="none")
    config.label_smoothing = 0.0
    config.ema_decay = 0.0

    # Running.
    config.eval = dict(every_steps=50, batch_size=512, views="none")
    config.early_stopping = dict(patience=0, min_delta=0.0)
    config.checkpoint = dict(keep_latest=1)
    config.guard = dict(on_non_finite="stop", max_times=3, lr_factor=0.5, watchdog_minutes=0.0)  # or "skip", "rollback"
    config.log_every_steps = 50
    config.steps_per_call = 1  # in one program; more where a step is short

    if options["cifar10"]:
        config.data.source = variants.tfds_or_folder("cifar10", root=options["root"], image_size=32)
        config.update_from_flattened_dict(CIFAR10)
    for word, changes in VARIANTS.items():
        if options[word]:
            config.update_from_flattened_dict(changes)
    if options["quick"]:
        config.horizon.steps = 50
    return config
