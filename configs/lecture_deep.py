"""The lecture on deep networks, in handwritten digits or CIFAR-10: activation, initialiser, BatchNorm.

Ten hidden layers of 64, ReLU, Kaiming, no normalisation, momentum SGD; each word after the colon changes one thing,
and words add up: `:deeper,xavier`. Expected: 96 % on validation without a word; docs/lecture.md has the others. Each
run takes 6 to 15 seconds on one CPU core.

    python -m scripts.train --config=configs/lecture_deep.py --workdir=runs/deep
    python -m scripts.train --config=configs/lecture_deep.py:sigmoid --workdir=runs/deep_sigmoid

`:quick` trains for 50 steps; `:cifar10` trains for 2,000 on CIFAR-10 from TFDS, with `root=DIR` from class folders.
"""

from linseed.configs import base, variants

CIFAR10 = {
    "data.source": dict(name="tfds", dataset="cifar10"),
    "data.val_fraction": 0.1,
    "eval.every_steps": 500,
    "horizon.steps": 2000,
}

VARIANTS = {
    "batchnorm": {"model.normalization": "batch"},
    "deeper": {"model.widths": (64,) * 20},
    "high_rate": {"optimizer.lr": 0.1},
    "sigmoid": {"model.activation": "sigmoid", "model.kernel_init": "xavier_normal"},
    "xavier": {"model.kernel_init": "xavier_normal"},
    "cifar10": CIFAR10,
    "root": lambda root: CIFAR10 | variants.folder(root),
    "quick": {"horizon.steps": 50},
}


def get_config(variant=""):
    config = base.get_config()
    # A large validation split: these runs are compared on it, and differ by little.
    config.data.source = dict(name="digits", test_fraction=0.2)
    config.data.val_fraction = 0.3
    config.data.batch_size = 32

    config.model = dict(name="mlp", widths=(64,) * 10, kernel_init="kaiming_normal", normalization="none", dropout=0.0)

    # Nothing that would hide a bad start: no decay, no clipping, no warm-up.
    config.optimizer = dict(name="momentum", lr=0.01, weight_decay=0.0)
    config.schedule = dict(name="cosine", warmup_steps=0)
    config.horizon = dict(steps=600)
    config.eval = dict(every_steps=50, batch_size=512)
    return variants.apply(config, variant, VARIANTS)
