"""The one clock of all measured times: it waits for devices that work behind the host's back.

A GPU takes work into a queue and the call returns. The time of such a call alone is that of putting it there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Clock:
    """The host's clock, read once the devices of what is timed have nothing left to do.

    Args:
        used: what the timed calls work with: modules, tensors, or tensors nested in tuples, lists and dicts. A CPU has
            nothing to wait for.
    """

    def __init__(self, *used: Any) -> None:
        devices: dict[torch.device, None] = {}
        for one in pytree.tree_leaves(used):
            tensors = (*one.parameters(), *one.buffers()) if isinstance(one, nn.Module) else (one,)
            devices |= {tensor.device: None for tensor in tensors if isinstance(tensor, Tensor) and not tensor.is_meta}
        self._waits = [partial(torch.get_device_module(device).synchronize, device) for device in devices]

    def seconds(self) -> float:
        """Now, of an arbitrary start, as ``time.perf_counter``."""
        for wait in self._waits:
            wait()
        return time.perf_counter()

    def ms(self, function: Callable[[], Any]) -> float:
        """Milliseconds of one call, from an idle device to an idle device: on a GPU its launches count."""
        start = self.seconds()
        function()
        return (self.seconds() - start) * 1e3
