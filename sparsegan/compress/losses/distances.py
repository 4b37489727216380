"""Distances of images, of the strengths of their edges, and of activations, for `DistillationLoss`.

With x_C and x_O images of the compressed generator and of the original, the distance d is one of

    "l1"      mean |x_C - x_O|
    "mse"     mean (x_C - x_O)^2
    "scales"  the sum over s = 1, 2, 4, 8 of mean |A_s x_C - A_s x_O|, where A_s is the mean over squares of s x s
              pixels, plus mean |S x_C - S x_O|, where S gives the horizontal and the vertical Sobel gradient,
              plus 4 mean (x_C - x_O)^2, because absolute values alone leave large errors in a few places

and with h_C and h_O activations of the two, the distance r is one of

    "mse"       mean (h_C - h_O)^2
    "relative"  mean (h_C - h_O)^2 / mean h_O^2 + mean |h_C - h_O| / mean |h_O|

The relative distance gives every layer the same weight, whatever the scale of its activations.

A network that regresses to images gives softer images, because details that it cannot represent average out. With E the
sum of (S x)^2 over an image, and R the root mean square of S x over windows of 7 x 7 pixels,

    e = mean |R x_C - R x_O| + 1/10 mean over the images |E x_C - E x_O| / (E x_C + E x_O)

asks for edges of the same strength, in each window and in the whole image, without asking for the same edges.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def scales(ours: Tensor, theirs: Tensor) -> Tensor:
    """The distance "scales" of images [N, C, H, W]: at four sizes, and of their edges (see the module's text).

    Sizes below one pixel are left out.
    """
    total = F.l1_loss(ours, theirs) + F.l1_loss(sobel(ours), sobel(theirs)) + 4 * F.mse_loss(ours, theirs)
    for _ in range(3):
        if min(ours.shape[-2:]) < 2:
            break
        ours, theirs = F.avg_pool2d(ours, 2), F.avg_pool2d(theirs, 2)
        total = total + F.l1_loss(ours, theirs)
    return total


def sobel(images: Tensor) -> Tensor:
    """The horizontal and vertical Sobel gradients [N, 2 C, H, W] of images [N, C, H, W], per pixel."""
    across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack([across, across.T]).unsqueeze(1).repeat(images.shape[1], 1, 1, 1)
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")  # zeros would be an edge of the picture
    return F.conv2d(padded, kernels, groups=images.shape[1])


def sharpness(ours: Tensor, theirs: Tensor) -> Tensor:
    """The difference e of the strengths of the edges of images [N, C, H, W] (see the module's text)."""
    squares = [sobel(images).square() for images in (ours, theirs)]
    whole = [one.sum((1, 2, 3)) for one in squares]
    size = min(7, *ours.shape[-2:])
    # The small summand keeps the gradient of the root finite where a window is flat.
    r_ours, r_theirs = ((F.avg_pool2d(one, size, stride=(size + 1) // 2) + 1e-4).sqrt() for one in squares)
    tiny = torch.finfo(theirs.dtype).tiny  # an image may have no edges
    ratio = (whole[0] - whole[1]).abs() / (whole[0] + whole[1]).clamp_min(tiny)
    return F.l1_loss(r_ours, r_theirs) + ratio.mean() / 10


def relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """The distance "relative" of activations of one shape (see the module's text). All-zero `theirs` counts nothing."""
    gap, least = ours - theirs, torch.finfo(theirs.dtype).tiny
    squares = gap.square().mean() / theirs.square().mean().clamp_min(least)
    return squares + gap.abs().mean() / theirs.abs().mean().clamp_min(least)


Distance = Callable[[Tensor, Tensor], Tensor]
#: Distances of `DistillationLoss` by name. Each takes two tensors of one shape and returns a scalar.
DISTANCES: dict[str, Distance] = {"l1": F.l1_loss, "mse": F.mse_loss, "scales": scales}
ACTIVATION_DISTANCES: dict[str, Distance] = {"mse": F.mse_loss, "relative": relative}
