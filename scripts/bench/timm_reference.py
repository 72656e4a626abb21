"""What timm's networks give for random weights, to compare ours with; run by a Python with timm, not ours.

    PYTHON scripts/bench/timm_reference.py FOLDER gradient|logits [--size=N] NAME...

Writes FOLDER/NAME.npz for each name: every tensor under `weights/`, images float32 [B, 3, H, W], logits, the number of
parameters, and for "gradient" that of sum(logits * signs) in training mode, float64, under `gradient/`.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch


def randomize(model: torch.nn.Module, generator: torch.Generator):
    """Vectors that start at 0 or 1 would hide what they do; matrices keep what the network draws for them.

    Buffers that no file of weights holds, such as the periods of rotary positions, are no weights and stay.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point() or (tensor.ndim > 1 and tensor.std() > 1e-3):
            continue
        around = 1.0 if name.endswith(("weight", "running_var")) and tensor.ndim == 1 else 0.0
        drawn = around + 0.2 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        tensor.data = drawn.abs() + 0.1 if name.endswith("running_var") else drawn


def reference(name: str, *, gradient: bool, size: int) -> dict[str, np.ndarray]:
    """The arrays of one network. size: of the images in pixels, 0 for the network's own."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    create = partial(timm.create_model, name, pretrained=False, num_classes=1000)  # some have no head by default
    try:
        model = create(**({"img_size": size} if size else {}))
    except TypeError:  # a network for images of any size
        model = create()
    randomize(model, generator)
    size = size or model.pretrained_cfg["input_size"][-1]
    images = torch.randn(2, 3, size, size, generator=generator)
    found = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model.eval()(images)
    found |= {"images": images.numpy(), "logits": logits.numpy()}
    found["parameters"] = np.array(sum(p.numel() for p in model.parameters()))
    if gradient:
        model.double().train()
        for module in model.modules():  # what is drawn at random in training cannot be compared
            if "Drop" in type(module).__name__:
                module.eval()
        signs = torch.sign(torch.randn(logits.shape, generator=generator)).double()
        (model(images.double()) * signs).sum().backward()
        found["signs"] = signs.numpy()
        found |= {f"gradient/{k}": p.grad.numpy() for k, p in model.named_parameters() if p.grad is not None}
    return found


def main():
    folder, mode, *names = sys.argv[1:]
    size = next((int(name.partition("=")[2]) for name in names if name.startswith("--size=")), 0)
    for name in (name for name in names if not name.startswith("--")):
        found = reference(name, gradient=mode == "gradient", size=size)
        np.savez(Path(folder) / f"{name}.npz", **found)
        print(name, flush=True)


if __name__ == "__main__":
    main()
