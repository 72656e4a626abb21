"""The lecture on optimisers, rates and losses, in handwritten digits: SGD, momentum, Adam; warm-up; softmax, SVM.

Three hidden layers of 256 without normalisation. Each word after the colon changes one thing, and words add up; an
optimiser's rate is its own. Expected: 97.6 % on validation without a word; docs/lecture.md has each. Each
run takes 5 to 12 seconds on one CPU core.

    python -m scripts.train --config=configs/lecture_rates.py:adam --workdir=runs/rates_adam
    python -m scripts.train --config=configs/lecture_rates.py:high_rate,warmup --workdir=runs/rates_warmup

`:quick` trains for 50 steps.
"""

from linseed.configs import base, variants

VARIANTS = {
    "adam": {"optimizer": dict(name="adam", lr=1e-3)},
    "sgd": {"optimizer": dict(name="sgd", lr=0.1)},
    "constant": {"schedule.name": "constant"},
    "high_rate": {"optimizer.lr": 0.15},
    "svm": {"loss.name": "svm"},
    "warmup": {"schedule.warmup_steps": 300},
    "quick": {"horizon.steps": 50},
}


def get_config(variant=""):
    config = base.get_config()
    # A large validation split: these runs are compared on it, and differ by little.
    config.data.source = dict(name="digits", test_fraction=0.2)
    config.data.val_fraction = 0.3
    config.data.batch_size = 32

    config.model = dict(name="mlp", widths=(256, 256, 256), normalization="none", dropout=0.0)

    # Nothing that would help a bad rate: no decay, no clipping, no warm-up.
    config.optimizer = dict(name="momentum", lr=0.02, weight_decay=0.0)
    config.schedule = dict(name="cosine", warmup_steps=0)
    config.horizon = dict(steps=600)
    config.eval = dict(every_steps=50, batch_size=512)
    return variants.apply(config, variant, VARIANTS)
