"""A run of an MLP whose parameters, FLOPs and bytes can be worked out by hand."""

from linseed.configs import digits
from linseed.trainer.config.resolve import resolve

BATCH, PIXELS, WIDTH, CLASSES = 64, 8 * 8 * 3, 128, 4
TRAIN, VAL = 256, 64


def mlp(**changes):
    """A run of 18 steps, 4 an epoch, with an evaluation every 5."""
    config = resolve(digits.get_config())
    with config.unlocked():
        config.data.source = dict(
            name="synthetic", num_examples=TRAIN + VAL, num_classes=CLASSES, image_size=8, channels=3, seed=0
        )
        config.model = dict(
            name="mlp", widths=(WIDTH,), activation="relu", kernel_init="auto", normalization="none", dropout=0.0
        )
        config.horizon = dict(steps=18)
        config.eval = dict(every_steps=5, batch_size=32, views="none")
        config.schedule = dict(name="cosine", warmup_steps=3)
    flat = {
        "data.augment": "",
        "data.batch_size": BATCH,
        "data.val_fraction": VAL / (TRAIN + VAL),
        "ema_decay": 0.0,
    }
    config.update_from_flattened_dict({**flat, **changes})
    return config
