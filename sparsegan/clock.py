"""The clock of all measured times, which waits for devices that work asynchronously.

A call that gives work to a GPU returns once the work is in a queue. A clock that does not wait would time the queueing.
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
    """The host's clock, read when the devices in use have finished their work.

    Args:
        used: the modules and tensors that the timed calls work with; tensors may be nested in tuples, lists and dicts.
            Their devices are waited for. A CPU has nothing to wait for.
    """

    def __init__(self, *used: Any) -> None:
        devices: dict[torch.device, None] = {}
        for one in pytree.tree_leaves(used):
            tensors = (*one.parameters(), *one.buffers()) if isinstance(one, nn.Module) else (one,)
            devices |= {tensor.device: None for tensor in tensors if isinstance(tensor, Tensor) and not tensor.is_meta}
        self._waits = [partial(torch.get_device_module(device).synchronize, device) for device in devices]

    def seconds(self) -> float:
        """Seconds since an arbitrary start, as ``time.perf_counter`` counts them."""
        for wait in self._waits:
            wait()
        return time.perf_counter()

    def ms(self, function: Callable[[], Any]) -> float:
        """Milliseconds of one call, from idle devices to idle devices. On a GPU this includes the launches."""
        start = self.seconds()
        function()
        return (self.seconds() - start) * 1e3
