"""CIFAR-10, ResNet-20 (He et al. 2015, section 4.2), SGD with momentum, cosine schedule.

A research baseline, for an accelerator. Expected accuracy: not measured yet; published: 91.25 % with a
step schedule over 64,000 steps (table 6).

    python -m scripts.train --config=configs/cifar10_resnet20.py --workdir=runs/resnet20

`:quick` trains for a tenth of an epoch; `:root=DIR` reads class folders instead of TFDS.
"""

from linseed.configs import base, variants

VARIANTS = {"root": variants.folder, "quick": {"horizon.epochs": 0.1, "schedule.warmup_epochs": 0.02}}


def get_config(variant=""):
    config = base.get_config()
    config.data.source = dict(name="tfds", dataset="cifar10")
    config.data.augment = "pad_crop(4)|flip_lr(0.5)"

    config.model = dict(name="resnet20")

    config.optimizer = dict(name="momentum", lr=0.1, weight_decay=1e-4)
    config.schedule.warmup_epochs = 2.0
    config.horizon.epochs = 180.0
    config.eval.batch_size = 1024
    config.log_every_steps = 100
    return variants.apply(config, variant, VARIANTS)
