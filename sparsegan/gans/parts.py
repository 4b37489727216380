"""Parts that several reference GANs use: checks, norms, initialisation, adversarial losses, sizes from a state_dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .objective import Reduce, mean

State = Mapping[str, Tensor]
NORMS = ("batch", "instance")


def check(**counts: Any) -> None:
    """Raises ValueError unless every argument is an integer of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be an integer, at least 1")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's instance norm with two changes: running statistics are never used, and channels_last is kept.

    StarGAN's public checkpoints hold running statistics, but its public code never calls eval(). The statistics are
    therefore kept in the state_dict, and evaluation normalises each image by its own statistics, as training does.
    torch's instance norm copies a channels_last tensor to NCHW, and the next layer copies it back. torch's batch norm
    of a single image computes the same sums without these copies.
    """

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        parts = [
            F.batch_norm(one, None, None, self.weight, self.bias, training=True, eps=self.eps) for one in x.split(1)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Returns a norm layer: for "batch" affine, with running statistics; for "instance" neither.

    The convolution before an instance norm has a bias, as in the public code.
    """
    check_choice("norm", norm, NORMS)
    return nn.BatchNorm2d(channels) if norm == "batch" else InstanceNorm2d(channels)


def initialise(module: nn.Module) -> None:
    """Draws convolution weights from N(0, 0.02) and batch-norm scales from N(1, 0.02), and sets biases to 0.

    DCGAN's section 3 says so; pix2pix and CycleGAN do the same.
    """
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        return  # a parameter on the meta device has only a shape
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


# Adversarial losses. Each compares scores with `target`, 1 (real) or 0 (fake). `reduce` makes the term of the losses of
# all scores; by default it is their mean, a scalar.


def cross_entropy(probability: Tensor, target: float, reduce: Reduce = mean) -> Tensor:
    """Returns -mean log p for target 1, and -mean log(1 - p) for target 0. PyTorch floors each log at -100."""
    wanted = torch.full_like(probability, target)
    return reduce(F.binary_cross_entropy(probability, wanted, reduction="none"))


def logit_cross_entropy(logit: Tensor, target: float, reduce: Reduce = mean) -> Tensor:
    """Returns `cross_entropy` of sigmoid(logit), without overflow."""
    return reduce(F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, target), reduction="none"))


def least_squares(score: Tensor, target: float, reduce: Reduce = mean) -> Tensor:
    """Returns mean (score - target)^2 (Mao et al., LSGAN, arXiv 1611.04076)."""
    return reduce((score - target).square())


# Sizes of a network, read from the shapes in its state_dict


def size_of(state: State, key: str, axis: int, default: int) -> int:
    """Returns `state[key].shape[axis]`, or `default` where the tensor or the axis is missing."""
    tensor = state.get(key)
    return tensor.shape[axis] if tensor is not None and tensor.dim() > axis else default


def count_up(state: State, key: str, start: int = 0, step: int = 1) -> int:
    """Returns how many of `key.format(start)`, `key.format(start + step)`, ... `state` has before the first gap."""
    count = 0
    while key.format(start + step * count) in state:
        count += 1
    return count
