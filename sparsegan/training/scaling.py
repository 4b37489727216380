"""Losses scaled for the backward pass of networks that compute in float16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LossScale:
    """The backward passes before the steps of one optimizer, for networks under autocast to `dtype`.

    float16 holds nothing below 6e-8, and gradients are smaller. There a loss is multiplied before its backward pass,
    and the gradients are divided within the step. A step whose gradients overflowed is left out, and the factor is
    halved (Micikevicius et al., "Mixed precision training", arXiv 1710.03740). With any other dtype nothing is changed.
    From one step to the next all gradients have the same factor.
    """

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to those that are there."""
        self.scaler.scale(loss).backward()

    @property
    def used(self) -> bool:
        """Whether anything is scaled."""
        return self.scaler.is_enabled()

    def step(self, optimizer: Optimizer) -> bool:
        """Have `optimizer` take its step, unless gradients overflowed; whether it did."""
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def state_dict(self) -> dict[str, Any]:
        """The factor; nothing where there is none."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        if self.used and state:
            self.scaler.load_state_dict(state)
