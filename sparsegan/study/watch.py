"""Observes the run of a row: the discriminator's outputs, the cost of a step, and an average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..compress import Compressor
from ..randomness import seeded
from .tasks import Task

POINTS, LOOKS = 24, 12  # points per curve; looks at the discriminator per run, each of which costs time


def entropy(probability: Tensor) -> float:
    """Returns the mean entropy, in bits, of binary answers with this `probability`: 0 is certain, 1 is undecided."""
    p = probability.double().clamp(1e-12, 1 - 1e-12)
    return (-(p * p.log2() + (1 - p) * (1 - p).log2())).mean().item()


class Operations(TorchDispatchMode):
    """Counts `flops` as torch's FlopCounterMode does, but without module hooks, which fail under a gradient penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        return output


class Watched:
    """The batches of `loader`. Between two batches, this class observes the run without changing it.

    `batch`: the batch on which the discriminator is observed, the same at every look.
    `looks`: a dict per look, for `LOOKS` looks and one more at the end. It holds the step, and the mean of the
        discriminator's outputs on real images and on images of the compressed and of the original generator, both from
        the same noise. Where outputs are probabilities, it also holds their entropies. Each look uses copies of the
        networks, in the modes in which the networks are trained.
    `macs`: multiply-accumulates of the steps so far. The step after each look is counted; the count stands for all
        steps up to the next look.
    `decay`: decay of the average of the parameters over the second half of the run, when no weight is dropped any more.
    """

    def __init__(
        self, loader: Any, compressor: Compressor, original: nn.Module, task: Task, batch: Any, decay: float
    ) -> None:
        self.loader, self.compressor, self.original = loader, compressor, original
        self.task, self.batch, self.decay = task, batch, decay
        self.steps = compressor.schedule.steps
        self.every = max(1, self.steps // LOOKS)
        self.step = 0
        self.macs = 0
        self.looks: list[dict[str, float]] = []
        self.average: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if self.step >= self.steps:  # batches for work that follows the training
                yield batch
                continue
            looked = self.step % self.every == 0
            if looked:
                self._look()
            try:
                with self._counted() if looked else nullcontext():
                    yield batch
            finally:  # the last step is over when the iteration is closed
                self._after_step()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        counter = Operations()
        try:
            with counter:
                yield
        finally:
            self.macs += counter.flops // 2 * min(self.every, self.steps - self.step)

    def finish(self) -> None:
        """Takes the last look. To be called after the last step."""
        self._look()

    def _after_step(self) -> None:
        self.step += 1
        if not self.decay or self.step <= self.steps // 2:
            return
        for name, parameter in self.compressor.task.student.named_parameters():
            now = parameter.detach().clone()
            before = self.average.get(name)
            same = before is not None and before.shape == now.shape
            self.average[name] = before.lerp(now, 1 - self.decay) if same and before is not None else now

    def keep_average(self) -> None:
        """Copies the average to the compressed generator's parameters."""
        with torch.no_grad():
            for name, parameter in self.compressor.task.student.named_parameters():
                parameter.copy_(self.average[name])

    def _look(self) -> None:
        task = self.compressor.task
        judge, student, original = map(copy.deepcopy, (task.discriminator, task.student, self.original))
        outputs: list[Tensor] = []
        judge.register_forward_hook(lambda module, inputs, output: outputs.append(_first(output).detach()))
        fakes = []
        for generator in (student, original):
            with seeded(0), torch.no_grad():
                fakes.append(task.objective.generate(generator, self.batch))
        with seeded(0):
            task.objective.generator_terms(original, judge, fakes[1], self.batch)
        on_original = outputs[0]
        outputs.clear()
        with seeded(0):
            task.objective.discriminator_terms(student, judge, fakes[0], self.batch)
        # Real images come first, whether the discriminator was called once or twice.
        on_real, on_fake, *_ = torch.cat(outputs).split(len(on_original))
        look: dict[str, float] = {"step": self.step}
        for name, output in (("real", on_real), ("compressed", on_fake), ("original", on_original)):
            if self.task.probability:
                output = output.sigmoid() if self.task.probability == "sigmoid" else output
                look[f"entropy_{name}"] = entropy(output)
            look[name] = output.mean().item()
        if not all(map(math.isfinite, look.values())):
            raise RuntimeError(f"step {self.step}: the discriminator's outputs are not finite")
        self.looks.append(look)


def _first(output: Any) -> Tensor:
    """Returns the first tensor of a discriminator's output: the score, or the first part where it has several."""
    return output if isinstance(output, Tensor) else _first(output[0])


def thinned(history: list[dict[str, float]]) -> dict[str, list[float]]:
    """Returns every figure of a run as a curve: its means over `POINTS` equal parts of the run."""
    size = max(1, len(history) // POINTS)
    parts = [history[start : start + size] for start in range(0, len(history), size)]
    curves: dict[str, list[float]] = {}
    for name in dict.fromkeys(name for line in history for name in line):  # not every step trains the generator
        seen = [[line[name] for line in part if name in line] for part in parts]
        curves[name] = [round(sum(values) / len(values), 5) for values in seen if values]
    return curves
