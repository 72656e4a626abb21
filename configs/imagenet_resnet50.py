"""ImageNet (ILSVRC 2012), ResNet-50, SGD with momentum, 90 epochs, cosine schedule (Goyal et al. 2017, with cosine).

Expected accuracy: not measured here. Published for this recipe: 76.2 to 76.7 % top-1 on the validation images (Flax's
ImageNet example), in 4.3 hours on eight V100 in mixed precision or 4.4 hours on a TPU v3-8.

    python -m scripts.train --config=configs/imagenet_resnet50.py:root=DIR --workdir=runs/resnet50

`:root=DIR` reads class folders: `DIR/train/<class>/*.JPEG`, and the 50,000 validation images as `DIR/test/<class>/`.
Without it TFDS's `imagenet2012` is read, prepared as array_record. `:quick` trains for a hundredth of an epoch.
ImageNet's own validation images are the test split, opened once; what is watched in training is carved from train.
"""

import ml_collections

from linseed.configs import variants


def get_config(variant=""):
    options = variants.parse(variant, quick=False, root="")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.precision = "bfloat16"
    config.convolution = "auto"  # oneDNN where that was proven to work here; "xla": never
    config.parallel = dict(backend="pmap")

    # Data, decoded as it is needed.
    decoding = dict(image_size=224, resize=256, train_crop="random_resized_crop", on_bad_image="error", workers=16)
    if options["root"]:
        where = dict(name="folder_stream", root=options["root"], test_fraction=0.04, split_seed=0)  # where no test/
    else:
        where = dict(
            name="tfds_stream", dataset="imagenet2012", data_dir="", train_split="train", test_split="validation"
        )
    config.data = dict(
        source=where | decoding,
        val_fraction=0.01,
        split_seed=0,
        train_examples=0,  # of train, for training; 0: all
        placement="auto",  # of the train images: these stay in their files
        batch_size=1024,
        augment="flip_lr(0.5)",
        mix=dict(name="none"),
        normalize="channel_mean_std",
        mean=(),
        std=(),
    )

    # Model.
    config.model = dict(name="resnet50", stem="imagenet", drop_path=0.0)
    config.data_init = dict(name="none")

    # Optimiser. `lr` is the peak of the schedule for `lr_per_batch` examples a batch.
    config.optimizer = dict(
        name="nesterov",
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        clip="global_norm",
        clip_norm=0.0,
        rules=("rest:",),
        lr_per_batch=256,
    )
    config.schedule = dict(name="cosine", warmup_epochs=5.0)
    config.horizon = dict(epochs=90.0)
    config.accumulation_parts = 1
    config.remat = "none"
    config.loss = dict(name="softmax")
    config.regularizer = dict(name="none")
    config.label_smoothing = 0.1
    config.ema_decay = 0.0

    # Running.
    config.eval = dict(every_epochs=1.0, batch_size=1024, views="none")
    config.early_stopping = dict(patience=0, min_delta=0.0)  # 0: train to the end, keep the best snapshot
    config.checkpoint = dict(keep_latest=1)
    config.guard = dict(on_non_finite="stop", max_times=3, lr_factor=0.5, watchdog_minutes=0.0)  # or "skip", "rollback"
    config.log_every_steps = 100
    config.steps_per_call = 1  # in one program; more where a step is short

    if options["quick"]:
        config.horizon.epochs = 0.01
        config.schedule.warmup_epochs = 0.002
    return config
