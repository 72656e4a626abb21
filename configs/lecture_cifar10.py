"""The lecture on CIFAR-10 in a small convolutional network: BatchNorm, dropout, augmentation, warm-up, ReLU, Kaiming.

Five 3x3 convolutions, ReLU, Kaiming, no normalisation, momentum SGD, on all images or on 2,000 (`few`). Each word after
the colon changes one thing, and words add up. Expected: 57 % on validation without a word; docs/lecture.md has each. A
run takes about a minute on two CPU cores, a third of it to read the images.

    python -m scripts.train --config=configs/lecture_cifar10.py --workdir=runs/lecture
    python -m scripts.train --config=configs/lecture_cifar10.py:few,augmentation --workdir=runs/lecture_few_augmentation

`:quick` trains for 50 steps; `:root=DIR` reads class folders instead of TFDS.
"""

from linseed.configs import base, variants

VARIANTS = {
    "augmentation": {"data.augment": "pad_crop(4)|flip_lr(0.5)"},
    "batchnorm": {"model.normalization": "batch"},
    "dropout": {"model.dropout": 0.5},
    "few": {"data.train_examples": 2000},
    "high_rate": {"optimizer.lr": 0.1},
    "sigmoid": {"model.activation": "sigmoid", "model.kernel_init": "xavier_normal"},
    "warmup": {"schedule.warmup_steps": 200},
    "xavier": {"model.kernel_init": "xavier_normal"},
    "root": variants.folder,
    "quick": {"horizon.steps": 50, "schedule.warmup_steps": 0},
}


def get_config(variant=""):
    config = base.get_config()
    config.data.source = dict(name="tfds", dataset="cifar10")
    config.data.batch_size = 64

    config.model = dict(
        name="cnn", widths=(32, 32, 64, 64, 128), kernel_init="kaiming_normal", normalization="none", dropout=0.0
    )

    # Nothing that would help or hide: no decay, no clipping, no warm-up.
    config.optimizer = dict(name="momentum", lr=0.02, weight_decay=0.0)
    config.schedule = dict(name="cosine", warmup_steps=0)
    config.horizon = dict(steps=800)
    config.eval = dict(every_steps=200, batch_size=500)
    return variants.apply(config, variant, VARIANTS)
