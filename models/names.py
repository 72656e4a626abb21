"""The names that timm and torchvision give a network's tensors, for weights that others trained.

A family says in `torch_names` how its modules are called there: pairs (pattern, replacement) for `re.sub`, applied in
their order to a module's '/'-joined path. What is left is joined by dots, `blocks_0_1/norm1` to `blocks_0_1.norm1`. The
names of the leaves and the order of axes are the same in all families.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]

# Flax's name of a leaf -> PyTorch's. Parameters of a module's own, such as `cls_token`, have the same name in both.
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}

# The axes of a kernel: ours in the order in which PyTorch has them. [I, O] -> [O, I], [W, I, O] -> [O, I, W],
# [H, W, I, O] -> [O, I, H, W].
_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}


def torch_name(path: str, rules: Rules) -> str:
    """`stem/conv/kernel` -> `conv1.weight`, by the rules of the family; path: the '/'-joined path of a leaf."""
    module, _, leaf = path.rpartition("/")
    for pattern, replacement in rules:
        module = re.sub(pattern, replacement, module)
    return ".".join(filter(None, [*module.split("/"), _LEAVES.get(leaf, leaf)]))


def to_torch(path: str, values: np.ndarray) -> np.ndarray:
    """The values of the leaf at `path` in PyTorch's order of axes."""
    axes = _AXES.get(values.ndim) if path.endswith("kernel") else None
    return values.transpose(axes) if axes else values


def from_torch(path: str, values: np.ndarray) -> np.ndarray:
    """The values of a tensor of PyTorch in the order of axes of the leaf at `path`."""
    axes = _AXES.get(values.ndim) if path.endswith("kernel") else None
    return values.transpose(np.argsort(axes)) if axes else values
