"""The device of networks, and batches moved to it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .outermost import mapped
from .randomness import CPU


def device_of(**networks: nn.Module | None) -> torch.device:
    """The one device that these networks are on; the CPU where no network has a tensor.

    Keywords name the networks in the text of the ValueError, which is raised where they are on several devices.
    """
    found: dict[torch.device, str] = {}
    for role, network in networks.items():
        if network is not None:
            for name, tensor in chain(network.named_parameters(), network.named_buffers()):
                found.setdefault(tensor.device, f"the {role}'s {name}")
    if len(found) > 1:
        where = " and ".join(f"{what} is on {device}" for device, what in list(found.items())[:2])
        raise ValueError(f"{where}; all networks must be on one device, to which the batches are moved")
    return next(iter(found), CPU)


def moved(batch: Any, device: torch.device) -> Any:
    """`batch` on `device`, with the tensors in tuples, lists and dicts; the same object where all are there already.

    Copies to a GPU start from pinned memory, and the host does not wait for them.
    """

    devices: set[torch.device] = set()

    def note(tensor: Tensor) -> Tensor:
        devices.add(tensor.device)
        return tensor

    def move(tensor: Tensor) -> Tensor:
        if device.type == "cuda" and tensor.device == CPU:
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    mapped(batch, note)
    return batch if devices <= {device} else mapped(batch, move)
