"""Handwritten digits (scikit-learn's real 8x8 scans), a small MLP, L-BFGS: the full batch and a line search.

The lecture's "2nd order and beyond", for data that fits one batch. Expected: 100 % on train from step 20 on, 98.6 % on
validation (three seeds), in 5 to 6 seconds.

    python -m scripts.train --config=configs/digits_lbfgs.py --workdir=runs/digits_lbfgs

`:quick` takes five steps.
"""

from linseed.configs import base, variants

VARIANTS = {"quick": {"horizon.steps": 5}}


def get_config(variant=""):
    config = base.get_config()
    # All of train in one batch, without augmentation: the line search needs the same loss each time it asks.
    config.data.source = dict(name="digits", test_fraction=0.2)
    config.data.batch_size = 0

    # No dropout and no BatchNorm, for the same reason.
    config.model = dict(name="mlp", widths=(64,), activation="tanh", normalization="none")

    # Rate 1 is the plain method: the line search finds the step. Decay is a term of the loss.
    config.optimizer = dict(name="lbfgs", lr=1.0, memory_size=10, max_linesearch_steps=20)
    config.regularizer = dict(name="l2", strength=1e-4)
    config.schedule = dict(name="constant")
    config.horizon = dict(steps=40)

    # A step is an epoch, and its accuracy is that on all of train.
    config.eval = dict(every_steps=5, batch_size=512)
    config.log_every_steps = 5
    return variants.apply(config, variant, VARIANTS)
