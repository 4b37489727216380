"""The meanings that the rules of the engine give to modules, functions and methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

#: A parameter: the tensor for a module, the node of the argument for a function.
Parameter = Tensor | fx.Node | None


@dataclass(frozen=True)
class Convolution:
    """A module that is a convolution or a transposed convolution, sparse or dense."""


@dataclass(frozen=True)
class FunctionalConvolution:
    """A convolution whose weight is an argument. `arguments`: the given arguments, by name."""

    transposed: bool
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class ModulatedConvolution:
    """A call of a :class:`sparsegan.nn.modulated.ModulatedConv`, whose convolution is its child ``convolution``.

    `scales`: the node of its second argument. `eps`: of the demodulation, None without one.
    """

    scales: fx.Node
    eps: float | None


@dataclass(frozen=True)
class Norm:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` for each channel.

    `statistics`: where mean and variance come from: "stored" in the module, "image" or "batch". `groups`: into how many
    groups of neighbours the channels are divided, where the channels of a group have one mean and variance; 0 where
    each channel has its own.
    """

    statistics: str
    weight: Parameter
    bias: Parameter
    eps: float
    groups: int = 0


@dataclass(frozen=True)
class Activation:
    """x where x is above 0, and ``x * slope`` elsewhere. A tensor of slopes has one element, or one per channel."""

    slope: float | Parameter
    in_place: bool


@dataclass(frozen=True)
class OutputActivation:
    """A function of each element that the kernels apply while they write. `name`: one of ops.OUTPUT_ACTIVATIONS."""

    name: str
    in_place: bool


@dataclass(frozen=True)
class Elementwise:
    """Any other function that maps each element separately."""

    in_place: bool


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic on one tensor and numbers. `affine`: scale and shift if the result is ``x * scale + shift``, else
    None."""

    affine: tuple[float, float] | None
    in_place: bool


@dataclass(frozen=True)
class Combination:
    """Arithmetic on two tensors: ``a + b``, ``a - b``, ``a * b`` or ``a / b``, with torch's broadcasting.

    `operation`: "+", "-", "*" or "/".
    """

    operation: str
    a: fx.Node
    b: fx.Node
    in_place: bool


@dataclass(frozen=True)
class Padding:
    """A padding of an image or of a signal.

    `mode`: one of ops.PADDING_MODES. `sizes`: elements at the left, right, top and bottom, the last two 0 for a signal;
    a negative size crops. `border`: the number that mode "zeros" pads with. `name`: the module or function that it
    comes from, if known.
    """

    mode: str
    sizes: tuple[int, int, int, int]
    border: float = 0.0
    name: str = ""


@dataclass(frozen=True)
class Resize:
    """A resized image. `scale`: one factor or a factor per axis, as in torch; None if a size is given instead."""

    mode: str
    scale: Any


@dataclass(frozen=True)
class Pooling:
    """Each element becomes the maximum or the mean of a region. Elements of a padding do not count."""


@dataclass(frozen=True)
class AveragePooling:
    """Each element becomes the mean of a window of `kernel` elements. Elements of the padding are 0 and count."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@dataclass(frozen=True)
class PixelShuffle:
    """Each block of ``factor * factor`` channels becomes one channel that is `factor` times as high and as wide."""

    factor: int


@dataclass(frozen=True)
class Concatenation:
    """The channels of several tensors, one after another."""

    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Expansion:
    """A view of the input, repeated along axes of one element."""


@dataclass(frozen=True)
class Identity:
    """The input itself."""


Meaning = (
    Convolution
    | FunctionalConvolution
    | ModulatedConvolution
    | Norm
    | Activation
    | OutputActivation
    | Elementwise
    | Arithmetic
    | Combination
    | Padding
    | Resize
    | Pooling
    | AveragePooling
    | PixelShuffle
    | Concatenation
    | Expansion
    | Identity
)
