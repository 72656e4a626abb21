"""The lecture on regularisation, in handwritten digits: dropout and augmentation where images are few.

A wide MLP learns 145 images by heart, and is judged on 1,293 others. Each word after the colon changes one thing, and
words add up. Expected: 93.2 % on validation without a word; docs/lecture.md has each. Each run takes 4 to 8 seconds on
one CPU core.

    python -m scripts.train --config=configs/lecture_few.py --workdir=runs/few
    python -m scripts.train --config=configs/lecture_few.py:dropout --workdir=runs/few_dropout

`:quick` trains for 50 steps.
"""

import ml_collections

from linseed.configs import variants

VARIANTS = {
    "augmentation": {"data.augment": "rotate(10)|translate(0.1)"},
    "dropout": {"model.dropout": 0.5},
}


def get_config(variant=""):
    options = variants.parse(variant, quick=False, **dict.fromkeys(VARIANTS, False))
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.precision = "float32"
    config.convolution = "auto"  # oneDNN where that was proven to work here; "xla": never
    config.parallel = dict(backend="pmap")

    # Data. Few images to train on, many to be judged on.
    config.data = dict(
        source=dict(name="digits", test_fraction=0.2, split_seed=0),
        val_fraction=0.9,
        split_seed=0,
        train_examples=0,  # of train, for training; 0: all
        placement="auto",  # of the train images: on the devices where they fit, else on the host
        batch_size=48,
        augment="",
        mix=dict(name="none"),
        normalize="channel_mean_std",
        mean=(),
        std=(),
    )

    # Model.
    config.model = dict(
        name="mlp", widths=(256, 256), activation="relu", init="auto", normalization="none", dropout=0.0
    )
    config.data_init = dict(name="none")

    # Optimiser. No decay: dropout and augmentation are to do the work alone.
    config.optimizer = dict(
        name="adam",
        lr=1e-3,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
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
    config.eval = dict(every_steps=50, batch_size=1294, views="none")
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
    return config
