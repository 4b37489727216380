"""Loss scaling for the backward pass of networks that compute in float16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LossScale:
    """The loss scale of one optimizer, for networks under autocast to `dtype`. Only torch.float16 is scaled.

    float16 holds no magnitude below 6e-8, and gradients can be smaller. The loss is therefore multiplied by a factor
    before its backward pass, and `step` divides the gradients by it. A step whose gradients overflowed is skipped, and
    the factor is halved (Micikevicius et al., "Mixed precision training", arXiv 1710.03740). All backward passes
    between two steps have the same factor.
    """

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the scaled `loss`, which adds to the existing gradients."""
        self.scaler.scale(loss).backward()

    @property
    def used(self) -> bool:
        """Whether losses are scaled."""
        return self.scaler.is_enabled()

    def step(self, optimizer: Optimizer) -> bool:
        """Run `optimizer.step()`, unless gradients overflowed. Returns whether the step was taken."""
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def state_dict(self) -> dict[str, Any]:
        """The state of the factor; empty where losses are not scaled."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self.used and state:
            self.scaler.load_state_dict(state)
