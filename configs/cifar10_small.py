"""CIFAR-10 on two CPU cores: a small network in the manner of the CIFAR-10 speed records, SGD with Nesterov momentum.

Expected: 86.1 % on test (CIFAR-10 as a JPEG copy, seed 0), in 16 CPU-minutes: ten minutes or so on two cores.

    python -m scripts.train --config=configs/cifar10_small.py --workdir=runs/cifar10_small

`:quick` trains for a tenth of an epoch; `:root=DIR` reads class folders instead of TFDS.
"""

import ml_collections

from linseed.configs import variants


def get_config(variant=""):
    options = variants.parse(variant, quick=False, root="")
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
        batch_size=128,
        augment="pad_crop(2, mode='reflect')|flip_lr(0.5)",
        mix=dict(name="none"),
        normalize="channel_mean_std",
        mean=(),
        std=(),
    )

    # Model.
    config.model = dict(
        name="speednet",
        stem_width=24,
        stem_bias_range=0.0,
        widths=(32, 128, 128),
        activation="relu",
        init="kaiming_normal",
        head_init="lecun_normal",
        norm_momentum=0.6,
        norm_eps=1e-5,
        logit_scale=1 / 9,
    )
    config.data_init = dict(name="none")

    # Optimiser. `lr` is the peak of the schedule, for this batch size.
    config.optimizer = dict(
        name="nesterov",
        lr=0.2,
        momentum=0.9,
        weight_decay=5e-4,
        clip="global_norm",
        clip_norm=0.0,
        rules=("rest:",),
        lr_per_batch=0,
    )
    config.schedule = dict(name="cosine", warmup_epochs=1.0)
    config.horizon = dict(epochs=11.0)
    config.accumulation_parts = 1
    config.remat = "none"
    config.loss = dict(name="softmax")
    config.regularizer = dict(name="none")
    config.label_smoothing = 0.1
    config.ema_decay = 0.0

    # Running.
    config.eval = dict(every_epochs=1.0, batch_size=512, views="none")
    config.early_stopping = dict(patience=0, min_delta=0.0)  # 0: train to the end, keep the best snapshot
    config.checkpoint = dict(keep_latest=1)
    config.guard = dict(on_non_finite="stop", max_times=3, lr_factor=0.5, watchdog_minutes=0.0)  # or "skip", "rollback"
    config.log_every_steps = 50
    config.steps_per_call = 1  # in one program; more where a step is short

    if options["quick"]:
        config.horizon.epochs = 0.1
        config.schedule.warmup_epochs = 0.02
    return config
