"""Image classifiers in Flax Linen, by name: `MODELS["resnet18"](num_classes=10, compute=compute, stem="cifar")`.

An entry is a subclass of `Classifier`, or a partial of one. Its fields, but for those that the partial fixes, are the
keys of a config's `model` section.
"""

from collections.abc import Callable
from functools import partial

from linseed.models import convnext, densenet, efficientnet, mixer, mobilenet, regnet, resnet, vit_names
from linseed.models.alexnet import AlexNet
from linseed.models.cnn import Cnn
from linseed.models.layers import Classifier, Input
from linseed.models.linear import Linear
from linseed.models.mlp import Mlp
from linseed.models.resnet import cifar_resnet
from linseed.models.speednet import SpeedNet
from linseed.models.vgg import vgg
from linseed.models.vit import VisionTransformer
from linseed.models.vit_blocks import Block
from linseed.models.wide_resnet import PreActivationBlock, WideResNet

MODELS: dict[str, Callable[..., Classifier]] = {
    "alexnet": AlexNet,
    "cnn": Cnn,
    "linear": Linear,
    "mlp": Mlp,
    "resnet20": partial(cifar_resnet, stage_sizes=(3, 3, 3)),
    "resnet32": partial(cifar_resnet, stage_sizes=(5, 5, 5)),
    "resnet44": partial(cifar_resnet, stage_sizes=(7, 7, 7)),
    "resnet56": partial(cifar_resnet, stage_sizes=(9, 9, 9)),
    "resnet110": partial(cifar_resnet, stage_sizes=(18, 18, 18)),
    "speednet": SpeedNet,
    **regnet.NAMES,
    **resnet.NAMES,
    "vgg11": partial(vgg, stage_sizes=(1, 1, 2, 2, 2)),
    "vgg13": partial(vgg, stage_sizes=(2, 2, 2, 2, 2)),
    "vgg16": partial(vgg, stage_sizes=(2, 2, 3, 3, 3)),
    "vgg19": partial(vgg, stage_sizes=(2, 2, 4, 4, 4)),
    "vit": partial(VisionTransformer, block=Block),
    "wide_resnet28_10": partial(WideResNet, block=PreActivationBlock, stage_size=4, widths=(160, 320, 640)),
    **efficientnet.NAMES,
    **mobilenet.NAMES,
    **convnext.NAMES,
    **densenet.NAMES,
    **mixer.NAMES,
    **vit_names.NAMES,
}

# How the images were made that timm's weights of a name were trained on, where it is not `Input()`.
INPUTS: dict[str, Input] = {
    **convnext.INPUTS,
    **densenet.INPUTS,
    **efficientnet.INPUTS,
    **mixer.INPUTS,
    **mobilenet.INPUTS,
    **regnet.INPUTS,
    **resnet.INPUTS,
    **vit_names.INPUTS,
}
