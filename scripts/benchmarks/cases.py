"""The configs that benchmarks run, brought to a size."""

import ml_collections

from configs import cifar10_resnet18, cifar10_small, digits


def synthetic(config: ml_collections.ConfigDict, *, examples: int, image_size: int) -> ml_collections.ConfigDict:
    """`config` on generated images, [image_size, image_size, 3], of ten classes."""
    config.data.source = dict(
        name="synthetic", num_examples=examples, num_classes=10, image_size=image_size, channels=3, seed=0
    )
    return config


# What one trains: name -> config. `small` for two CPU cores, the others for an accelerator.
CASES = {
    "digits": lambda: synthetic(digits.get_config(), examples=2000, image_size=8),
    "small": lambda: synthetic(cifar10_small.get_config(), examples=4000, image_size=32),
    "resnet18": lambda: synthetic(cifar10_resnet18.get_config(), examples=20000, image_size=32),
}
