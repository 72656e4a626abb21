"""The lecture on regularisation, in handwritten digits: dropout and augmentation where images are few.

A wide MLP learns 145 images by heart, and is judged on 1,293 others. Each word after the colon changes one thing, and
words add up. Expected: 93.2 % on validation without a word; docs/lecture.md has each. Each run takes 4 to 8 seconds on
one CPU core.

    python -m scripts.train --config=configs/lecture_few.py --workdir=runs/few
    python -m scripts.train --config=configs/lecture_few.py:dropout --workdir=runs/few_dropout

`:quick` trains for 50 steps.
"""

from linseed.configs import base, variants

VARIANTS = {
    "augmentation": {"data.augment": "rotate(10)|translate(0.1)"},
    "dropout": {"model.dropout": 0.5},
    "quick": {"horizon.steps": 50},
}


def get_config(variant=""):
    config = base.get_config()
    # Few images to train on, many to be judged on.
    config.data.source = dict(name="digits", test_fraction=0.2)
    config.data.val_fraction = 0.9
    config.data.batch_size = 48

    config.model = dict(name="mlp", widths=(256, 256), normalization="none", dropout=0.0)

    # No decay: dropout and augmentation are to do the work alone.
    config.optimizer = dict(name="adam", lr=1e-3, weight_decay=0.0)
    config.schedule = dict(name="cosine", warmup_steps=0)
    config.horizon = dict(steps=600)
    config.eval = dict(every_steps=50, batch_size=1294)
    return variants.apply(config, variant, VARIANTS)
