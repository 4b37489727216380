"""The GAN, the data and the options of one `sparsegan compress`, as its parts share them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from ..compress import BlankBatches
from ..data import Samples
from ..gans import Reference, store
from .loading import NO_DATA, load_data, test_data
from .pictures import some


@dataclass(frozen=True)
class Job:
    """The GAN, the data and the options of one run of the command.

    `samples`: the training samples; None where the run needs no data. `inputs`: the batches of the training, without
    generated images. `validated`: whether the run looks at a validation split, which no other part of the run may see.
    """

    arguments: argparse.Namespace
    gan: store.Gan
    reference: Reference
    device: torch.device
    samples: Samples | None
    inputs: Any
    validated: bool

    @property
    def data(self) -> str:
        """The data set of the fine-tuning; "none" without data."""
        return NO_DATA if self.samples is None else self.arguments.data

    @property
    def sounds(self) -> bool:
        """Whether the GAN makes sounds and not images."""
        return self.reference.samples.signals

    @property
    def domains(self) -> list[str]:
        """The names of the domains, where the data have domains."""
        return [] if self.samples is None else self.samples.domains

    def reported(self) -> tuple[Samples | None, str]:
        """The samples that the run is reported on, and their split in words. None where the run has no data.

        A validated run is reported on the test split, also where the GAN starts from noise. Raises ValueError where
        there is none.
        """
        if self.samples is None and not self.arguments.features:
            return None, "no"
        given = self.arguments, self.reference, self.arguments.size, self.gan.channels
        return (load_data(*given, "test"), "test") if self.validated else test_data(*given)

    def held_out(self) -> Samples | None:
        """The samples of the validation split; None where the run has no data."""
        if self.samples is None and not self.arguments.features:
            return None
        return load_data(self.arguments, self.reference, self.arguments.size, self.gan.channels, "validation")

    def batch(self, samples: Samples | None, count: int) -> Any:
        """A batch of `count` samples that are spread over `samples`, or of blank images where there are none."""
        if samples is None:
            return next(iter(BlankBatches(count, self.gan.channels or 3, self.arguments.size)))
        return some(samples, count)
