"""Scores of generators whose objective has figures of its own (`Objective.measures`), such as those of sounds.

For these figures lower is better, and the first is the one to judge by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..modes import in_mode
from ..placement import device_of, moved
from ..progress import track
from ..randomness import seeded

if TYPE_CHECKING:
    from ..data import Samples
    from ..gans.objective import Objective


def measured(
    generator: nn.Module,
    objective: Objective,
    samples: Samples,
    most: int | None = None,
    *,
    batch_size: int = 16,
    seed: int = 0,
    quiet: bool = True,
) -> dict[str, float]:
    """The mean of each figure over `samples`, by name. The generator runs in evaluation mode.

    `most`: at most so many samples, spread evenly; None for all. `seed`: of the draws of `generate`. Raises ValueError
    for an objective without figures of its own.
    """
    if objective.measures is None:
        raise ValueError("objective.measures is None; the objective must have figures of its own")
    order = samples.order(shuffled=False)
    if most is not None and len(order) > most:
        order = order[torch.linspace(0, len(order) - 1, most).long()]
    device = device_of(generator=generator)
    found: dict[str, list[Tensor]] = {}
    with seeded(seed), torch.no_grad(), in_mode(generator, False):
        for chunk in track(order.split(batch_size), "scoring", quiet):
            batch = moved(samples.batch(chunk, None), device)
            for name, values in objective.measures(objective.generate(generator, batch), batch).items():
                found.setdefault(name, []).append(values.double().cpu())
    return {name: torch.cat(values).mean().item() for name, values in found.items()}
