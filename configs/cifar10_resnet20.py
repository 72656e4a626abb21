"""CIFAR-10, ResNet-20 (He et al. 2015, section 4.2), SGD with momentum, cosine schedule.

A research baseline, for an accelerator. Expected accuracy: not measured yet; published: 91.25 % with a
step schedule over 64,000 steps (table 6).

    python -m scripts.train --config=configs/cifar10_resnet20.py --workdir=runs/resnet20

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
        augment="pad_crop(4)|flip_lr(0.5)",
        mix=dict(name="none"),
        normalize="channel_mean_std",
        mean=(),
        std=(),
    )

    # Model.
    config.model = dict(name="resnet20")
    config.data_init = dict(name="none")

    # Optimiser. `lr` is the peak of the schedule, for this batch size.
    config.optimizer = dict(
        name="momentum",
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        clip="global_norm",
        clip_norm=0.0,
        rules=("rest:",),
        lr_per_batch=0,
    )
    config.schedule = dict(name="cosine", warmup_epochs=2.0)
    config.horizon = dict(epochs=180.0)
    config.accumulation_parts = 1
    config.remat = "none"
    config.loss = dict(name="softmax")
    config.regularizer = dict(name="none")
    config.label_smoothing = 0.0
    config.ema_decay = 0.0

    # Running.
    config.eval = dict(every_epochs=1.0, batch_size=1024, views="none")
    config.early_stopping = dict(patience=0, min_delta=0.0)  # 0: train to the end, keep the best snapshot
    config.checkpoint = dict(keep_latest=1)
    config.guard = dict(on_non_finite="stop", max_times=3, lr_factor=0.5, watchdog_minutes=0.0)  # or "skip", "rollback"
    config.log_every_steps = 100
    config.steps_per_call = 1  # in one program; more where a step is short

    if options["quick"]:
        config.horizon.epochs = 0.1
        config.schedule.warmup_epochs = 0.02
    return config
