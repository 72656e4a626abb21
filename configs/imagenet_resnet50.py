"""ImageNet (ILSVRC 2012), ResNet-50, SGD with momentum, 90 epochs, cosine schedule (Goyal et al. 2017, with cosine).

Expected accuracy: not measured here. Published for this recipe: 76.2 to 76.7 % top-1 on the validation images (Flax's
ImageNet example), in 4.3 hours on eight V100 in mixed precision or 4.4 hours on a TPU v3-8.

    python -m scripts.train --config=configs/imagenet_resnet50.py:root=DIR --workdir=runs/resnet50

`:root=DIR` reads class folders: `DIR/train/<class>/*.JPEG`, and the 50,000 validation images as `DIR/test/<class>/`.
Without it TFDS's `imagenet2012` is read, prepared as array_record. `:quick` trains for a hundredth of an epoch.
ImageNet's own validation images are the test split, opened once; what is watched in training is carved from train.
"""

from linseed.configs import base, variants

DECODING = dict(image_size=224, resize=256, train_crop="random_resized_crop", workers=16)


def folder(root):
    # The part of train that becomes test counts only where there is no test/.
    return {"data.source": dict(name="folder_stream", root=root, test_fraction=0.04, **DECODING)}


VARIANTS = {"root": folder, "quick": {"horizon.epochs": 0.01, "schedule.warmup_epochs": 0.002}}


def get_config(variant=""):
    config = base.get_config()
    config.data.source = dict(name="tfds_stream", dataset="imagenet2012", test_split="validation", **DECODING)
    config.data.val_fraction = 0.01
    config.data.batch_size = 1024
    config.data.augment = "flip_lr(0.5)"

    config.model = dict(name="resnet50", stem="imagenet")
    config.precision = "bfloat16"
    config.label_smoothing = 0.1

    config.optimizer = dict(name="nesterov", lr=0.1, lr_per_batch=256, weight_decay=1e-4)
    config.schedule.warmup_epochs = 5.0
    config.horizon.epochs = 90.0
    config.eval.batch_size = 1024
    config.log_every_steps = 100
    return variants.apply(config, variant, VARIANTS)
