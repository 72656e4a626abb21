"""Handwritten digits (scikit-learn's real 8x8 scans), a small MLP, L-BFGS: the full batch and a line search.

The lecture's "2nd order and beyond", for data that fits one batch. Expected: 100 % on train from step 20 on, 98.6 % on
validation (three seeds), in 5 to 6 seconds.

    python -m scripts.train --config=configs/digits_lbfgs.py --workdir=runs/digits_lbfgs

`:quick` takes five steps.
"""

import ml_collections

from linseed.configs import variants


def get_config(variant=""):
    options = variants.parse(variant, quick=False)
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.precision = "float32"
    config.convolution = "auto"  # oneDNN where that was proven to work here; "xla": never
    config.parallel = dict(backend="pmap")

    # Data: batch_size 0 is all of the train split in one batch. The line search needs the same loss each time it asks.
    config.data = dict(
        source=dict(name="digits", test_fraction=0.2, split_seed=0),
        val_fraction=0.1,
        split_seed=0,
        train_examples=0,  # of train, for training; 0: all
        placement="auto",  # of the train images: on the devices where they fit, else on the host
        batch_size=0,
        augment="",
        mix=dict(name="none"),
        normalize="channel_mean_std",
        mean=(),
        std=(),
    )

    # Model. No dropout and no BatchNorm, for the same reason.
    config.model = dict(name="mlp", widths=(64,), activation="tanh", init="auto", normalization="none", dropout=0.0)
    config.data_init = dict(name="none")

    # Optimiser. Rate 1 is the plain method: the line search finds the step. Decay is a term of the loss.
    config.optimizer = dict(
        name="lbfgs",
        lr=1.0,
        memory_size=10,
        max_linesearch_steps=20,
        clip="global_norm",
        clip_norm=0.0,
        rules=("rest:",),
        lr_per_batch=0,
    )
    config.schedule = dict(name="constant", warmup_steps=0)
    config.horizon = dict(steps=40)
    config.accumulation_parts = 1
    config.remat = "none"
    config.loss = dict(name="softmax")
    config.regularizer = dict(name="l2", strength=1e-4)
    config.label_smoothing = 0.0
    config.ema_decay = 0.0

    # Running. A step is an epoch, and its accuracy is that on all of train.
    config.eval = dict(every_steps=5, batch_size=512, views="none")
    config.early_stopping = dict(patience=0, min_delta=0.0)
    config.checkpoint = dict(keep_latest=1)
    config.guard = dict(on_non_finite="stop", max_times=3, lr_factor=0.5, watchdog_minutes=0.0)  # or "skip", "rollback"
    config.log_every_steps = 5
    config.steps_per_call = 1  # in one program; more where a step is short

    if options["quick"]:
        config.horizon.steps = 5
    return config
