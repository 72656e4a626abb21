"""Fine-tuning: the weights of others, the head of a linear probe, then all layers together (LP-FT).

    python -m scripts.train --config=configs/finetune.py:root=DIR,weights=NAME_OR_FILE --workdir=runs/finetune

`root` and `weights` as for the page `probe`, whose head it starts from, so that the first steps do not spoil the
features (Kumar et al. 2022, arXiv 2202.10054). AdamW; layers near the images move less (`optimizer.layer_decay`), and
BatchNorm keeps the statistics of the weights. Expected: see docs/pretrained.md.

`:quick` trains for one epoch.
"""

from linseed.configs import base, variants

VARIANTS = {**variants.PRETRAINED, "quick": {"horizon.epochs": 1.0}}


def get_config(variant=""):
    config = base.get_config()
    config.data.source = dict(name="folder_stream", test_fraction=0.2)
    config.data.val_fraction = 0.2
    config.data.normalize = "pretrained"
    config.data.batch_size = 32
    config.data.augment = "flip_lr(0.5)"
    config.eval.batch_size = 32

    config.model = dict(name="pretrained")
    config.head_init = "probe"
    config.batch_norm.frozen = True
    config.label_smoothing = 0.1

    config.optimizer = dict(name="adamw", lr=1e-4, weight_decay=1e-3, layer_decay=0.9, clip_norm=1.0)
    config.schedule = dict(name="cosine", warmup_percent=10.0)
    config.horizon.epochs = 10.0
    config.ema_decay = 0.99
    return variants.apply(config, variant, VARIANTS)
