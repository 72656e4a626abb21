"""The lecture on CIFAR-10 in a small convolutional network: BatchNorm, dropout, augmentation, warm-up, ReLU, Kaiming.

Five 3x3 convolutions, ReLU, Kaiming, no normalisation, momentum SGD, on all images or on 2,000 (`few`). Each word after
the colon changes one thing, and words add up. Expected: 57 % on validation without a word; docs/lecture.md has each. A
run takes about a minute on two CPU cores, a third of it to read the images.

    python -m scripts.train --config=configs/lecture_cifar10.py --workdir=runs/lecture
    python -m scripts.train --config=configs/lecture_cifar10.py:few,augmentation --workdir=runs/lecture_few_augmentation

`:quick` trains for 50 steps; `:root=DIR` reads class folders instead of TFDS.
"""

import ml_collections

from linseed.configs import variants

VARIANTS = {
    "augmentation": {"data.augment": "pad_crop(4)|flip_lr(0.5)"},
    "batchnorm": {"model.normalization": "batch"},
    "dropout": {"model.dropout": 0.5},
    "few": {"data.train_examples": 2000},
    "high_rate": {"optimizer.lr": 0.1},
    "sigmoid": {"model.activation": "sigmoid", "model.init": "xavier_normal"},
    "warmup": {"schedule.warmup_steps": 200},
    "xavier": {"model.init": "xavier_normal"},
}


def get_config(variant=""):
    options = variants.parse(variant, quick=False, root="", **dict.fromkeys(VARIANTS, False))
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.precision = "float32"
    config.convolution = "auto"  # oneDNN where that was proven to work here; "xla": never
    config.parallel = dict(backend="pmap")

    # Data. Validation is carved from train; test is opened once, at the end.
    config.data = dict(
        source=variants.tfds_or_folder("cifar10", root=options["root"], image_size=32),
        val_fraction=0.1,
        split_seed=0,
        train_examples=0,  # of train, for training; 0: all
        placement="auto",  # of the train images: on the devices where they fit, else on the host
        batch_size=64,
        augment="",
        mix=dict(name="none"),
        normalize="channel_mean_std",
        mean=(),
        std=(),
    )

    # Model.
    config.model = dict(
        name="cnn",
        widths=(32, 32, 64, 64, 128),
        activation="relu",
        init="kaiming_normal",
        normalization="none",
        dropout=0.0,
    )
    config.data_init = dict(name="none")

    # Optimiser. Nothing that would hide a bad start: no decay, no clipping, no warm-up.
    config.optimizer = dict(
        name="momentum",
        lr=0.02,
        momentum=0.9,
        weight_decay=0.0,
        clip="global_norm",
        clip_norm=0.0,
        rules=("rest:",),
        lr_per_batch=0,
    )
    config.schedule = dict(name="cosine", warmup_steps=0)
    config.horizon = dict(steps=800)
    config.accumulation_parts = 1
    config.remat = "none"
    config.loss = dict(name="softmax")
    config.regularizer = dict(name="none")
    config.label_smoothing = 0.0
    config.ema_decay = 0.0

    # Running.
    config.eval = dict(every_steps=200, batch_size=500, views="none")
    config.early_stopping = dict(patience=0, min_delta=0.0)
    config.checkpoint = dict(keep_latest=1)
    config.guard = dict(on_non_finite="stop", max_times=3, lr_factor=0.5, watchdog_minutes=0.0)  # or "skip", "rollback"
    config.log_every_steps = 50
    config.steps_per_call = 1  # in one program; more where a step is short

    for word, changes in VARIANTS.items():
        if options[word]:
            config.update_from_flattened_dict(changes)
    if options["quick"]:
        config.horizon.steps = 50
        config.schedule.warmup_steps = 0
    return config
