"""A folder of your own photos, from random weights: what suits their number. With weights of others, see `probe`.

    python -m scripts.train --config=configs/folder.py:root=DIR --workdir=runs/photos

`root` holds a folder of photos for each class, or `train/` with these. The page counts the files in it, and chooses:

    photos              image size   network                      epochs           batch
    up to 20,000        64           speednet, narrow             3000 / sqrt(n)   16 to 128
    up to 100,000       64           speednet, wide               15 to 21         256
    more                128          resnet18, for an accelerator 15               256

at least 15 epochs and at most 100. A run's first lines say what was chosen; any flag changes it, for small images
`--config.data.source.image_size=32`. Expected on 244 photos of ants and bees: see docs/pretrained.md. `:quick` trains
for one epoch.
"""

from linseed.configs import base, variants

FEW, MANY = 20_000, 100_000  # photos

NARROW, WIDE = (32, 128, 128), (64, 256, 256)  # of the three blocks


def suited(root):
    """The changes that the photos in `root` ask for."""
    count = variants.count_photos(root)
    batch_size = min(2 ** max(4, (count // 32).bit_length()), 128 if count <= FEW else 256)
    changes = {
        "data.batch_size": batch_size,
        "data.val_fraction": 0.2 if count <= FEW else 0.05,
        "horizon.epochs": float(min(100, max(15, round(3000 / max(count, 1) ** 0.5)))),
    }
    if count > MANY:
        source = dict(name="folder_stream", root=root, image_size=128, resize=144, train_crop="random_resized_crop")
        return changes | {
            "data.source": source,
            "data.augment": "flip_lr(0.5)|color_jitter(0.2, 0.2, 0.2)",
            "model": dict(name="resnet18", stem="imagenet"),
        }
    changes["data.source"] = dict(name="folder", root=root, image_size=64)
    return changes | {"model": speednet(NARROW if count <= FEW else WIDE)}


def speednet(widths):
    """The network of the page `cifar10_small`, with these widths."""
    return dict(
        name="speednet",
        stem_width=24,
        stem_bias_range=0.0,
        widths=widths,
        activation="relu",
        kernel_init="kaiming_normal",
        head_init="lecun_normal",
        norm_momentum=0.6,
        norm_eps=1e-5,
        logit_scale=1 / 9,
    )


VARIANTS = {"root": suited, "quick": {"horizon.epochs": 1.0, "schedule.warmup_percent": 0.0}}


def get_config(variant=""):
    config = base.get_config()
    config.data.source = dict(name="folder", image_size=64)
    config.data.augment = "random_resized_crop(0.35)|flip_lr(0.5)|color_jitter(0.2, 0.2, 0.2)"
    config.data.batch_size = 64

    config.model = speednet(NARROW)
    config.label_smoothing = 0.1

    config.optimizer = dict(name="nesterov", lr=0.2, lr_per_batch=128, weight_decay=5e-4, clip_norm=1.0)
    config.schedule = dict(name="cosine", warmup_percent=10.0)
    config.horizon.epochs = 50.0
    config.eval = dict(every_percent=5.0, batch_size=256)
    return variants.apply(config, variant, VARIANTS)
