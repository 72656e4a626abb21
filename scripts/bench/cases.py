"""The benchmarks' configs, brought to a size."""

import ml_collections

from linseed.configs import cifar10_resnet18, cifar10_small, digits
from linseed.trainer.config.resolve import resolve


def synthetic(config: ml_collections.ConfigDict, *, examples: int, image_size: int) -> ml_collections.ConfigDict:
    """`config` on generated images, [image_size, image_size, 3], of ten classes."""
    config.data.source = dict(
        name="synthetic", num_examples=examples, num_classes=10, image_size=image_size, channels=3, seed=0
    )
    return config


def tiny() -> ml_collections.ConfigDict:
    """Digits in 24 steps, logged 12 times and saved 6 times; it takes a second.

    The learning rate rises until it destroys the network, so the best checkpoint, of step 8, is an early one.
    """
    config = resolve(digits.get_config())
    config.convolution = "xla"  # its programs stay in the cache for the next start
    config.data.batch_size = 64
    config.model = dict(
        name="mlp", widths=(32,), activation="relu", kernel_init="auto", normalization="none", dropout=0.2
    )
    config.schedule = dict(name="one_cycle", rise_steps=22, div_factor=300.0, final_div_factor=1.0, warmup_steps=0)
    config.optimizer.lr = 1.0
    config.horizon = dict(steps=24)
    config.eval = dict(every_steps=4, batch_size=256, views="none")
    config.log_every_steps = 2
    config.checkpoint.keep_latest = 3
    config.ema_decay = 0.5
    return config


# name -> config to train. `small` is for two CPU cores, the others are for an accelerator.
CASES = {
    "digits": lambda: synthetic(resolve(digits.get_config()), examples=2000, image_size=8),
    "small": lambda: synthetic(resolve(cifar10_small.get_config()), examples=4000, image_size=32),
    "resnet18": lambda: synthetic(resolve(cifar10_resnet18.get_config()), examples=20000, image_size=32),
}
