"""PyTorch train steps to compare with ours, for `scripts.bench.conv`; run by a Python with torch, not ours.

    PYTHON -m scripts.bench.torch_steps NAME BATCH

For each line on stdin it makes a step of the network NAME and answers with a line. NCHW tensors in NHWC memory order
("channels last"), float32, eager mode. The images are in memory, and neither augmented nor normalised: less work than
our step.
"""

import sys
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

PIXELS, CLASSES = 32, 10


class SpeedBlock(nn.Module):
    """Like models/speednet.py: convolution, max-pooling, norm, GELU, convolution, norm, GELU."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(c, width, 3, padding=1, bias=False) for c in (channels, width))
        self.norm1, self.norm2 = (nn.BatchNorm2d(width, eps=1e-12, momentum=0.4) for _ in range(2))
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad = False

    def forward(self, x):
        x = functional.gelu(self.norm1(functional.max_pool2d(self.conv1(x), 2)))
        return functional.gelu(self.norm2(self.conv2(x)))


class SpeedNet(nn.Module):
    """The network of configs/cifar10_speedrun.py."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 2)
        self.stem.weight.requires_grad = False
        self.blocks = nn.Sequential(SpeedBlock(24, 64), SpeedBlock(64, 256), SpeedBlock(256, 256))
        self.head = nn.Linear(256, CLASSES, bias=False)

    def forward(self, x):
        return self.head(self.blocks(functional.gelu(self.stem(x))).amax((2, 3))) / 256


class PlainShortcutBlock(nn.Module):
    """Like models/resnet.py: two convolutions around a shortcut that drops pixels and pads channels with zeros."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.stride, self.more = stride, width - channels

    def forward(self, x):
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return functional.relu(x + y)


class ResNet20(nn.Module):
    """The network of configs/cifar10_resnet20.py."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        shapes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.blocks = nn.Sequential(*(PlainShortcutBlock(*shape) for shape in shapes))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.head(self.blocks(functional.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum, by three Newton-Schulz steps (K. Jordan 2024), for kernels [F, C, h, w]."""

    def __init__(self, params, *, lr: float, momentum: float):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                average = state.setdefault("average", torch.zeros_like(param))
                average.mul_(group["momentum"]).add_(param.grad)
                update = param.grad.add(average, alpha=group["momentum"])
                param.mul_(len(param) ** 0.5 / param.norm())
                param.add_(_orthogonal(update.reshape(len(update), -1)).view_as(param), alpha=-group["lr"])


def _orthogonal(matrix):
    x = matrix / (matrix.norm() + 1e-7)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    for _ in range(3):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


def _record():
    model = SpeedNet()
    kernels = [param for param in model.blocks.parameters() if param.ndim == 4]
    others = [p for p in model.parameters() if p.requires_grad and not any(p is kernel for kernel in kernels)]
    sgd = torch.optim.SGD(others, lr=1e-3, momentum=0.85, nesterov=True)
    return model, [Muon(kernels, lr=0.24, momentum=0.6), sgd]


def _resnet20():
    model = ResNet20()
    return model, [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)]


NETWORKS = {"record": _record, "resnet20": _resnet20}


def make_step(name: str, *, batch: int) -> Callable[[], float]:
    """A function that makes one train step of NETWORKS[name] and returns its loss."""
    torch.manual_seed(0)
    model, optimizers = NETWORKS[name]()
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, PIXELS, PIXELS).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % CLASSES

    def step():
        model.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.item()

    return step


def main():
    name, batch = sys.argv[1], int(sys.argv[2])
    step = make_step(name, batch=batch)
    print(torch.__version__, flush=True)
    for _ in sys.stdin:
        print(step(), flush=True)


if __name__ == "__main__":
    main()
