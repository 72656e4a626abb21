"""A linear probe: the weights of others as they are, and a last layer fitted to your images. A classifier in seconds.

    python -m scripts.train --config=configs/probe.py:root=DIR,weights=NAME_OR_FILE --workdir=runs/probe

`root` holds a folder of photos for each class. `weights` is a file (.safetensors, .pth), or a name on the hub such as
timm/resnet50.a1_in1k. Sizes, crop and normalisation are those that the weights were trained with.

The features of the train and validation images are computed once and kept beside the workdir; logistic regression with
16 weight decays is fitted to them, of which validation chooses. Expected on 244 photos of ants and bees with
EfficientNet-Lite0: see docs/pretrained.md.
"""

from linseed.configs import base, variants

VARIANTS = variants.PRETRAINED


def get_config(variant=""):
    config = base.get_config()
    config.data.source = dict(name="folder_stream", test_fraction=0.2)
    config.data.val_fraction = 0.2
    config.data.normalize = "pretrained"
    config.data.batch_size = 32
    config.eval.batch_size = 32

    config.model = dict(name="pretrained")
    config.head_init = "probe"

    # All of it is in the start: the one step evaluates, and moves nothing.
    config.horizon = dict(steps=1)
    config.optimizer.rules = ("rest: frozen",)
    config.batch_norm.frozen = True
    return variants.apply(config, variant, VARIANTS)
