"""CIFAR-10 on two CPU cores: a small network in the manner of the CIFAR-10 speed records, SGD with Nesterov momentum.

Expected: 86.1 % on test (CIFAR-10 as a JPEG copy, seed 0; before a mend of the gradients through max-pooling), in 16
CPU-minutes: ten minutes or so on two cores.

    python -m scripts.train --config=configs/cifar10_small.py --workdir=runs/cifar10_small

`:quick` trains for a tenth of an epoch; `:root=DIR` reads class folders instead of TFDS.
"""

from linseed.configs import base, variants

VARIANTS = {"root": variants.folder, "quick": {"horizon.epochs": 0.1, "schedule.warmup_epochs": 0.02}}


def get_config(variant=""):
    config = base.get_config()
    config.data.source = dict(name="tfds", dataset="cifar10")
    config.data.augment = "pad_crop(2, mode='reflect')|flip_lr(0.5)"

    config.model = dict(
        name="speednet",
        stem_width=24,
        stem_bias_range=0.0,
        widths=(32, 128, 128),
        activation="relu",
        kernel_init="kaiming_normal",
        head_init="lecun_normal",
        norm_momentum=0.6,
        norm_eps=1e-5,
        logit_scale=1 / 9,
    )
    config.label_smoothing = 0.1

    config.optimizer = dict(name="nesterov", lr=0.2, weight_decay=5e-4)
    config.schedule.warmup_epochs = 1.0
    config.horizon.epochs = 11.0
    config.eval.batch_size = 512
    return variants.apply(config, variant, VARIANTS)
