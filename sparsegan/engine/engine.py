"""``optimize_for_inference``: a whole generator as a short list of fused steps."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from .. import _native
from ..copying import bake, copy_model
from ..forks import ENGINES, TRACING, leave_missing_threads
from ..tracing import Tracer, close
from . import tiling
from .compiler import Compiler, Program, Unsafe
from .gpu import GpuEngine
from .layers import Layers
from .memory import Layout, Memory, new_arena, plan_arena
from .shapes import Shapes
from .steps import Step, Torch
from .values import Slot


def optimize_for_inference(model: nn.Module, example: Any, plans: int = 8) -> Engine | GpuEngine:
    """A copy of a model, compiled for inference: whole, with activations kept between fused steps.

    Args:
        model: any module, sparse layers or pruned dense ones in it; unchanged. The engine computes what it computes in
            evaluation.
        example: an input, a tensor or a tuple of arguments. Other shapes and batch sizes are compiled when they come.
        plans: how many shapes are kept compiled.

    On a GPU batch norms and activations become part of the sparse layers before them, and each shape a CUDA graph.

    Raises:
        ValueError: the model computes something for the example that torch.fx does not see; it is on several devices,
            or on one that is neither a CPU nor an NVIDIA GPU; plans is below 1.
    """
    if plans < 1:
        raise ValueError(f"plans is {plans}; it must be at least 1")
    inputs = tuple(example) if isinstance(example, tuple | list) else (example,)
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1 or any(device.type not in ("cpu", "cuda") for device in devices):
        found = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"the model is on {found}; an engine needs one device, a CPU or an NVIDIA GPU")
    if any(device.type == "cuda" for device in devices):
        return GpuEngine(model, inputs, plans)
    return Engine(model, inputs, plans)


@dataclass(frozen=True)
class StepTime:
    """One step: where it comes from, what runs it and why, what it does besides, and milliseconds of a run.

    `multiply_ms`: of a convolution on kept weights, its share of multiplications (all threads' time, by shares).
    """

    name: str
    kernel: str
    shape: tuple[int, ...]
    fused: tuple[str, ...]
    why: str
    ms: float
    multiply_ms: float


@dataclass(eq=False)
class Compiled:
    """A program and where its tensors lie."""

    program: Program
    layout: Layout


@dataclass(eq=False)
class Workspace:
    """An arena for one call at a time, and the programs that have run in it, ready to run there again."""

    arena: Tensor
    bound: WeakKeyDictionary[Compiled, tuple[Memory, list[Any]]] = field(default_factory=WeakKeyDictionary)


class Engine:
    """A compiled model: call it like the model. ``print(engine)`` shows the steps for the example, timed.

    Calls at the same time are safe: each has memory of its own, which later calls of any size use again. A size that is
    new is compiled meanwhile, and known sizes do not wait for it. `model` is the engine's own copy of the model, in
    evaluation; :func:`sparsegan.save` of an engine saves that.
    """

    def __init__(self, model: nn.Module, example: tuple[Any, ...], plans: int) -> None:
        self.model = bake(copy_model(model)).eval().requires_grad_(False)
        self.example = example
        self._plans = plans
        self._layers = Layers(self.model)
        self._shapes = Shapes(self.model)
        self._compiled: OrderedDict[Any, Compiled] = OrderedDict()
        self._workspaces: list[Workspace] = []  # those that no call is using
        self.tiles = tiling.Tiles()
        with torch.no_grad():
            expected = self.model(*_copies(self.example))
            if not close(self(*_copies(self.example)), expected):
                raise ValueError(
                    f"the compiled {type(model).__name__} does not put out the same; its forward does something that "
                    "torch.fx does not see"
                )

    def __call__(
        self,
        *inputs: Any,
        tile: int | tuple[int, int] | None = None,
        overlap: int | tuple[int, int] | None = None,
        approximate: bool = False,
    ) -> Any:
        """What ``model(*inputs)`` returns, in evaluation and without gradients.

        Args:
            inputs: as the example's.
            tile: compute images ``[N, C, H, W]`` in parts of at most so many pixels a side, or (rows, columns): a run
                then needs the memory of one part. The result is that of the whole image.
            overlap: pixels that neighbouring tiles share; by default as many as the model's receptive field asks for.
                With fewer, tiles are blended, which is said once.
            approximate: a result that only resembles that of the whole image is welcome: a layer that looks at the
                whole image (an instance norm, attention) looks at a tile instead, and tiles are blended.

        Raises:
            TypeError: inputs are not of the example's kind.
            ValueError: with `tile`: no input is an image; an output is none; an output depends on the whole image, and
                `approximate` is not set; the tile is too small.
        """
        leave_missing_threads()
        if tile is not None or overlap is not None or approximate:
            return tiling.run(self, inputs, {}, tile, overlap, approximate)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            compiled = self._compile(inputs)
            workspace = self._take_workspace(compiled)
            memory, runs = workspace.bound[compiled]
            try:
                self._enter(compiled.program, memory, inputs)
                for run in runs:
                    run()
                return _results(compiled.program, memory)
            finally:
                memory.forget()
                with ENGINES:
                    self._workspaces.append(workspace)

    def _take_workspace(self, compiled: Compiled) -> Workspace:
        """One that is free, the program bound to it: one that knows the program, or else the largest."""
        with ENGINES:
            free = self._workspaces
            free.sort(key=lambda one: (compiled in one.bound, one.arena.numel()))
            workspace = free.pop() if free else Workspace(new_arena(0))
        if compiled not in workspace.bound:
            if workspace.arena.numel() < compiled.layout.bytes:
                workspace.bound.clear()  # first: the old arena is free before the new one is there
                workspace.arena = new_arena(0)
                workspace.arena = new_arena(compiled.layout.bytes)
            workspace.bound[compiled] = self._bind(compiled, workspace.arena)
        return workspace

    # ------------------------------------------------------------------ programs

    def _check(self, inputs: tuple[Any, ...]) -> None:
        """Raises where inputs are not of the example's kind."""
        if len(inputs) != len(self.example):
            raise TypeError(f"the engine takes {len(self.example)} inputs; {len(inputs)} were given")
        for place, (one, like) in enumerate(zip(inputs, self.example, strict=True)):
            if isinstance(like, Tensor) and (not isinstance(one, Tensor) or one.dtype != like.dtype):
                given = f"dtype {one.dtype}" if isinstance(one, Tensor) else f"type {type(one).__name__}"
                raise TypeError(f"input {place} has {given}; the example has dtype {like.dtype}")

    def _compile(self, inputs: tuple[Any, ...]) -> Compiled:
        self._check(inputs)
        key = tuple((tuple(one.shape), one.dtype) if isinstance(one, Tensor) else (type(one), one) for one in inputs)
        with ENGINES:
            if (known := self._known(key)) is not None:
                return known
        with TRACING:
            with ENGINES:
                if (known := self._known(key)) is not None:  # another thread has compiled it meanwhile
                    return known
            program = self._program(inputs)
            compiled = Compiled(program, plan_arena(program.steps))
            with ENGINES:
                self._compiled[key] = compiled
                while len(self._compiled) > self._plans:
                    self._compiled.popitem(last=False)
            return compiled

    def _known(self, key: Any) -> Compiled | None:
        """A program that is there; the one that was used longest ago goes first."""
        if key in self._compiled:
            self._compiled.move_to_end(key)
        return self._compiled.get(key)

    def _program(self, inputs: tuple[Any, ...]) -> Program:
        """The steps for inputs of these shapes; the whole model as one step of torch where it cannot be cut up."""
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        try:
            graph = self._shapes.trace(inputs) or Tracer(self.model, _copies(inputs)).trace(self.model)
            return Compiler(graph, dict(self.model.named_modules()), self._layers, dtype, len(inputs)).compiled
        except Unsafe as error:
            why = str(error)
        except Exception as error:  # whatever a forward makes of a proxy
            why = f"torch.fx cannot trace it: {error}"
        slots = [Slot(tuple(getattr(one, "shape", ())), torch.float32, outside=True) for one in inputs]
        y = Slot((), torch.float32, outside=True)
        name = type(self.model).__name__
        step = Torch(
            name=name, why=f"the whole model runs in torch: {why}", function=self.model, args=tuple(slots), y=y
        )
        return Program([step], slots, y)

    def _bind(self, compiled: Compiled, arena: Tensor) -> tuple[Memory, list[Any]]:
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.model.parameters()) else torch.float32
        memory = Memory(compiled.layout, dtype, arena)
        return memory, [step.bind(memory) for step in compiled.program.steps]

    def _enter(self, program: Program, memory: Memory, inputs: tuple[Any, ...]) -> None:
        for slot, one in zip(program.inputs, inputs, strict=True):
            memory.outside[slot] = one.contiguous() if isinstance(one, Tensor) and one.dim() == 4 else one
        for step in program.steps:
            for slot in step.writes:
                if slot.fresh:
                    memory.outside[slot] = torch.empty(slot.shape, dtype=slot.dtype)

    # ------------------------------------------------------------------ reports

    def profile(self, *inputs: Any, seconds: float = 0.5) -> list[StepTime]:
        """Each step, timed in whole runs: medians of as many as fit in `seconds`, at least three."""
        inputs = inputs or self.example
        with torch.no_grad():
            compiled = self._compile(inputs)
            memory, runs = self._bind(compiled, new_arena(compiled.layout.bytes))
            program = compiled.program
            times: list[list[tuple[float, float]]] = [[] for _ in runs]
            end = time.perf_counter() + seconds
            while len(times[0]) < 4 or time.perf_counter() < end:
                self._enter(program, memory, _copies(inputs))
                for run, own in zip(runs, times, strict=True):
                    before, start = _native.part_times(), time.perf_counter()
                    run()
                    passed, after = time.perf_counter() - start, _native.part_times()
                    parts = {name: after[name] - before[name] for name in after}
                    spent = sum(parts.values())
                    share = parts["multiplying"] / spent if spent else 0.0
                    own.append((passed * 1e3, passed * 1e3 * share))
        rows = []
        for step, own in zip(program.steps, times, strict=True):
            ms, multiply = (sorted(one[place] for one in own[1:])[len(own[1:]) // 2] for place in (0, 1))
            shape = step.writes[0].shape if step.writes else ()
            rows.append(StepTime(step.name, step.kernel, shape, tuple(step.fused), step.why, ms, multiply))
        return rows

    def steps(self, *inputs: Any) -> list[Step]:
        """The steps for inputs of these shapes, or the example's."""
        with torch.no_grad():
            return self._compile(inputs or self.example).program.steps

    def memory(
        self,
        *inputs: Any,
        tile: int | tuple[int, int] | None = None,
        overlap: int | tuple[int, int] | None = None,
        approximate: bool = False,
    ) -> dict[str, int]:
        """Bytes of one run's arena for inputs of these shapes, and of the parameters that all programs share.

        `tile`, `overlap`, `approximate`: as in a call, whose largest arena this is then.
        """
        with torch.no_grad():
            calls = [inputs or self.example]
            if tile is not None or overlap is not None or approximate:
                calls = list(tiling.shapes(self, calls[0], tile, overlap, approximate))
            arena = max(self._compile(call).layout.bytes for call in calls)
        return {"arena": arena, "parameters": self._layers.bytes()}

    def __str__(self) -> str:
        rows = self.profile()
        total = sum(row.ms for row in rows)
        outside = 1 - sum(row.multiply_ms for row in rows) / total
        lines = [f"{'step':<34}{'kernel':<11}{'output':<20}{'ms':>9}{'share':>7}  with, why"]
        for row in rows:
            with_what = ", ".join(row.fused)
            note = "; ".join(part for part in (with_what, row.why) if part)
            shape = "x".join(map(str, row.shape))
            lines.append(f"{row.name:<34}{row.kernel:<11}{shape:<20}{row.ms:>9.3f}{row.ms / total:>7.1%}  {note}")
        memory = self.memory()
        lines.append(
            f"{len(rows)} steps, {total:.2f} ms on {torch.get_num_threads()} thread(s), {outside:.0%} of it not "
            f"multiplying; arena {memory['arena'] / 1e6:.1f} MB, parameters and plans "
            f"{memory['parameters'] / 1e6:.1f} MB"
        )
        return "\n".join(lines)


def _copies(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward may change them in place."""
    return tuple(one.clone() if isinstance(one, Tensor) else one for one in inputs)


def _results(program: Program, memory: Memory) -> Any:
    return fx.node.map_aggregate(program.result, lambda one: memory.outside[one] if isinstance(one, Slot) else one)
