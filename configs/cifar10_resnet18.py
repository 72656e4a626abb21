"""CIFAR-10, ResNet-18 with a 3x3 stem, SGD with Nesterov momentum, cosine schedule, colour jitter.

A research baseline, for an accelerator. Expected accuracy: not measured yet.

    python -m scripts.train --config=configs/cifar10_resnet18.py --workdir=runs/resnet18

`:quick` trains for a tenth of an epoch; `:root=DIR` reads class folders instead of TFDS.
"""

from linseed.configs import base, variants

VARIANTS = {"root": variants.folder, "quick": {"horizon.epochs": 0.1, "schedule.warmup_epochs": 0.02}}


def get_config(variant=""):
    config = base.get_config()
    config.data.source = dict(name="tfds", dataset="cifar10")
    config.data.batch_size = 512
    config.data.augment = "pad_crop(4)|flip_lr(0.5)|color_jitter(0.2, 0.2, 0.2)"

    config.model = dict(name="resnet18", stem="cifar")
    config.precision = "bfloat16"
    config.label_smoothing = 0.1

    config.optimizer = dict(name="nesterov", lr=0.4, weight_decay=5e-4, clip_norm=1.0)
    config.schedule.warmup_epochs = 2.0
    config.horizon.epochs = 60.0
    config.eval.batch_size = 1024
    return variants.apply(config, variant, VARIANTS)
