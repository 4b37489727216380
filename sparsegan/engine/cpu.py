"""The engine for CPUs. It compiles a whole generator to a short list of fused steps."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..calls import Call
from ..forks import ENGINES
from ..nn.layer import DENSE_CLASSES, SparseConv
from ..ops import native
from ..ops.precisions import PRECISIONS
from ..renamed import renamed_attribute, with_new_names
from ..signals import IMAGE
from . import rules
from .arena import bytes_outside, last_uses, plan_arena
from .base import BaseEngine
from .compiler import Compiler, Program, Unsafe
from .layers import Layers
from .memory import Layout, Memory, new_arena
from .panels import readers_of_one_slot, share_panels
from .precision import Precisions, Ranges, common, decibels, narrowest, say, wanted
from .shapes import Shapes
from .steps import Run, SparseConvStep, Step, Torch
from .tiles import tiling
from .tracing import Tracer, has_hooks
from .values import Slot, Value


@dataclass(frozen=True)
class Fallback:
    """A step that runs in torch: the name of the module or function, and the reason."""

    name: str
    why: str


@dataclass(frozen=True)
class StepTime:
    """One step with its time.

    `name`: the module or function that the step comes from. `backend`, `why`: the backend that runs the step, and the
    reason for this choice. `shape`: of the output. `fused`: other work that the step also does. `ms`: the median time
    of the step in milliseconds. `multiply_ms`: for a sparse convolution, `ms` times the fraction of all threads' time
    that is spent multiplying.
    """

    name: str
    backend: str
    shape: tuple[int, ...]
    fused: tuple[str, ...]
    why: str
    ms: float
    multiply_ms: float
    kernel = renamed_attribute("kernel", "backend")

    def __setstate__(self, written: dict[str, Any]) -> None:
        self.__dict__.update(with_new_names(written))


@dataclass(eq=False)
class Compiled:
    """A program and the layout of its arena."""

    program: Program
    layout: Layout


@dataclass(eq=False)
class Workspace:
    """An arena for one call at a time. `bound`: the memory and the bound steps of each program that has used it."""

    arena: Tensor
    bound: WeakKeyDictionary[Compiled, tuple[Memory, list[Any]]] = field(default_factory=WeakKeyDictionary)


class Engine(BaseEngine):
    """A compiled model. Call it like the model. ``print(engine)`` shows the steps for the example and their times.

    Several threads may call an engine at the same time. Each running call has separate memory, which later calls of any
    size use again. While a new size is compiled, calls of known sizes do not wait. `model` is the engine's own copy of
    the model in evaluation mode; :func:`sparsegan.save` of an engine saves this copy.
    """

    unseen = "torch.fx"

    def __init__(
        self, model: nn.Module, example: Call, plans: int, statistics: str, precisions: Precisions | None = None
    ) -> None:
        super().__init__(model, example, plans, statistics)
        self._layers = Layers(self._running)
        self._shapes = Shapes(self._running)
        #: Names of modules that run as one step in torch, with the reason.
        self._opaque: dict[str, str] = {}
        self._whole = None if not has_hooks(self.model) else "it has hooks"
        self._workspaces: list[Workspace] = []  # workspaces that no running call uses
        self._check()
        self._say_fallbacks()
        if precisions is not None:
            self._use(precisions)

    @property
    def _more(self) -> tuple[Any, ...]:
        return (self.precisions,)

    # ------------------------------------------------------------------ short precisions

    @property
    def precisions(self) -> Precisions:
        """The precision of each sparse convolution."""
        return self._layers.precisions

    def shorten(self, asked: str | Mapping[str, str], calls: Sequence[Call], least_db: float | None) -> None:
        """Gives sparse convolutions a short precision. The arguments are those of
        :func:`sparsegan.optimize_for_inference`; `calls`: the calibration."""
        if any(one.dtype != torch.float32 for one in self._running.parameters() if one.is_floating_point()):
            raise ValueError(f"precision is {asked!r}; a short precision needs a model in float32")
        seen, results = Ranges(), []
        groups: set[tuple[str, ...]] = set()
        units: dict[str, tuple[int, int]] = {}
        with self._computing():
            for call in calls:
                steps = self._compile(call).program.steps
                groups |= {tuple(step.name for step in run) for run in readers_of_one_slot(steps)}
                units |= {one.name: _unit(one) for one in steps if isinstance(one, SparseConvStep)}
                with self._still():
                    results.append(self._watch(call, seen))

        def with_ranges(chosen: dict[str, str], notes: dict[str, str]) -> Precisions:
            found = Precisions(chosen, notes=notes)
            found.ranges = {name: seen.of(name, PRECISIONS[one]) for name, one in chosen.items()}
            common(found.ranges, groups)
            return found

        def measure(chosen: dict[str, str]) -> float:
            self._use(with_ranges(chosen, {}))
            with self._computing(), self._still():
                return min(
                    decibels(expected, self._run(self._compile(call), call.changed(Tensor.clone)))
                    for call, expected in zip(calls, results, strict=True)
                )

        if asked == "auto":
            assert least_db is not None
            chosen, notes, found = narrowest(units, least_db, measure)
        else:
            chosen, notes = wanted(asked, units)
            found = measure(chosen)
        for name in self._layers.without_levels() & chosen.keys():
            notes[name] = f"float32: its outputs have too many weights for {chosen.pop(name)}"
        precisions = with_ranges(chosen, notes)
        precisions.decibels = found
        self._use(precisions)
        say(asked, precisions if asked != "auto" else replace(precisions, notes={}), len(units))

    def _use(self, precisions: Precisions) -> None:
        with ENGINES:
            self._layers.use(precisions)
            self._compiled.clear()
            self._workspaces.clear()

    def _watch(self, call: Call, seen: Ranges) -> Any:
        """The results of a call, which shows the inputs of its sparse convolutions to `seen`."""
        compiled = self._compile(call)
        memory, runs = self._bind(compiled, new_arena(compiled.layout.bytes))
        self._enter(compiled.program, memory, call.changed(Tensor.clone).tensors)
        for step, run in zip(compiled.program.steps, runs, strict=True):
            if isinstance(step, SparseConvStep):
                seen.see(step.name, _transformed(memory, step.x))
            run()
        return _results(compiled.program, memory)

    def _say_fallbacks(self) -> None:
        """Warns once if the whole model or convolutions run in torch because the engine cannot compile them."""
        if self._whole is not None:
            found = f"the whole {type(self.model).__name__} ({self._whole})"
        else:
            modules = dict(self._running.named_modules())
            names = [one for one in self.fallbacks if _holds_convolutions(modules.get(one.name), one)]
            found = "; ".join(f"{one.name} ({one.why})" for one in names)
        if found:
            warnings.warn(
                f"these parts run in torch and not on the engine's kernels: {found}. engine.fallbacks lists all steps "
                "that run in torch",
                stacklevel=4,
            )

    @property
    def fallbacks(self) -> list[Fallback]:
        """The steps that run in torch for inputs of the example's shapes, with the reasons. Convolutions that run dense
        because dense is faster are not included."""
        return [
            Fallback(step.name, self._opaque.get(step.name, step.why))
            for step in self.steps()
            if step.backend == "torch"
        ]

    def _run(self, program: Compiled, call: Call) -> Any:
        workspace = self._take_workspace(program)
        memory, runs = workspace.bound[program]
        try:
            self._enter(program.program, memory, call.tensors)
            for run in runs:
                run()
            return _results(program.program, memory)
        finally:
            memory.forget()
            with ENGINES:
                self._workspaces.append(workspace)

    def _take_workspace(self, compiled: Compiled) -> Workspace:
        """A free workspace with the program bound to it, taken from the list. A workspace in which the program has run
        is preferred, then the largest."""
        with ENGINES:
            free = self._workspaces
            free.sort(key=lambda one: (compiled in one.bound, one.arena.numel()))
            workspace = free.pop() if free else Workspace(new_arena(0))
        if compiled not in workspace.bound:
            if workspace.arena.numel() < compiled.layout.bytes:
                workspace.bound.clear()  # this and an empty arena free the old one before a new one is allocated
                workspace.arena = new_arena(0)
                workspace.arena = new_arena(compiled.layout.bytes)
            workspace.bound[compiled] = self._bind(compiled, workspace.arena)
        return workspace

    # ------------------------------------------------------------------ programs

    def _make(self, call: Call) -> Compiled:
        program = self._program(call)
        share_panels(program.steps)
        return Compiled(program, plan_arena(program.steps))

    def _program(self, call: Call) -> Program:
        """The program for inputs of these shapes.

        A module that cannot be cut into steps becomes one step in torch. If that does not help, the whole model does,
        and `_whole` tells later calls so.
        """
        numbers = (one for one in (*self._running.parameters(), *call.tensors) if one.is_floating_point())
        dtype = next(numbers, torch.empty(())).dtype
        modules = dict(self._running.named_modules())
        while self._whole is None:
            tracer = Tracer(self._running, call.changed(Tensor.clone), self._opaque)
            try:
                graph, structure = self._shapes.trace(call, self._opaque) or (tracer.trace(), tracer.out_structure)
                program = Compiler(graph, modules, self._layers, dtype).compiled
                program.structure = structure
                return program
            except Unsafe as error:
                module, why = error.module, str(error)
            except Exception as error:  # a forward may raise anything when it gets proxies
                module, why = tracer.failed or "", f"torch.fx cannot trace it: {error}"
            if module in ("", *self._opaque):
                self._whole = why
            else:
                self._opaque[module] = why
        slots = [Slot(tuple(one.shape), one.dtype, outside=True) for one in call.tensors]
        y = Slot((), torch.float32, outside=True)

        def whole(*tensors: Tensor) -> Any:
            args, kwargs = call.arguments(tensors)
            return self._running(*args, **kwargs)

        name, why = type(self.model).__name__, f"the whole model runs in torch: {self._whole}"
        return Program([Torch(name=name, why=why, function=whole, args=tuple(slots), y=y)], slots, y)

    def _bind(self, compiled: Compiled, arena: Tensor) -> tuple[Memory, list[Any]]:
        memory = Memory(compiled.layout, compiled.program.affine_dtype, arena)
        steps, kept = compiled.program.steps, compiled.program.outputs
        ends = last_uses(steps, kept)
        return memory, [_ended(step.bind(memory), memory, end) for step, end in zip(steps, ends, strict=True)]

    def _enter(self, program: Program, memory: Memory, tensors: Sequence[Tensor]) -> None:
        for slot, one in zip(program.inputs, tensors, strict=True):
            memory.outside[slot] = one.contiguous() if one.dim() == IMAGE else one
        for step in program.steps:
            for slot in step.writes:
                if slot.fresh:
                    memory.outside[slot] = torch.empty(slot.shape, dtype=slot.dtype)

    # ------------------------------------------------------------------ reports

    def profile(self, *inputs: Any, seconds: float = 0.5, **kwargs: Any) -> list[StepTime]:
        """The steps with their times. The times are medians over as many whole runs as fit in `seconds`, at least
        three."""
        call = self._call_or_example(inputs, kwargs)
        with self._computing():
            compiled = self._compile(call)
            memory, runs = self._bind(compiled, new_arena(compiled.layout.bytes))
            program = compiled.program
            times: list[list[tuple[float, float]]] = [[] for _ in runs]
            end = time.perf_counter() + seconds
            while len(times[0]) < 4 or time.perf_counter() < end:
                self._enter(program, memory, call.changed(Tensor.clone).tensors)
                for run, own in zip(runs, times, strict=True):
                    before, start = native.part_times(), time.perf_counter()
                    run()
                    passed, after = time.perf_counter() - start, native.part_times()
                    parts = {name: after[name] - before[name] for name in after}
                    spent = sum(parts.values())
                    fraction = parts["multiplying"] / spent if spent else 0.0
                    own.append((passed * 1e3, passed * 1e3 * fraction))
        rows = []
        for step, own in zip(program.steps, times, strict=True):
            ms, multiply = (sorted(one[place] for one in own[1:])[len(own[1:]) // 2] for place in (0, 1))
            shape = step.writes[0].shape if step.writes else ()
            rows.append(StepTime(step.name, step.backend, shape, tuple(step.fused), step.why, ms, multiply))
        return rows

    def _call_or_example(self, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        return self._call(inputs, kwargs) if inputs or kwargs else self._example

    def steps(self, *inputs: Any, **kwargs: Any) -> list[Step]:
        """The steps for inputs of these shapes; without arguments, for the example."""
        with self._computing():
            return self._compile(self._call_or_example(inputs, kwargs)).program.steps

    def memory(
        self,
        *inputs: Any,
        tile: int | tuple[int, int] | None = None,
        overlap: int | tuple[int, int] | None = None,
        approximate: bool = False,
        **kwargs: Any,
    ) -> dict[str, int]:
        """Bytes of one run for inputs of these shapes: "arena", and "outside" for the tensors that do not lie in the
        arena (inputs, results, and what torch's steps return); and bytes of the "parameters" that all programs use.

        Without inputs, the sizes are those for the example. `tile`, `overlap`, `approximate`: as in a call. Both are
        then the largest ones over the tiles. "outside" counts a view of a tensor as a copy, and does not count the
        memory that torch allocates within a step, nor results of torch that are not tensors.
        """
        with self._computing():
            calls = [self._call_or_example(inputs, kwargs)]
            if tile is not None or overlap is not None or approximate:
                args, named = calls[0].arguments(calls[0].tensors)
                parts = tiling.shapes(self, args, named, tile, overlap, approximate)
                calls = [Call.of(*part) for part in parts]
            compiled = [self._compile(call) for call in calls]
        programs = [one.program for one in compiled]
        return {
            "arena": max(one.layout.bytes for one in compiled),
            "outside": max(bytes_outside(one.steps, one.outputs) for one in programs),
            "parameters": self._layers.bytes(),
        }

    def __str__(self) -> str:
        rows = self.profile()
        total = sum(row.ms for row in rows)
        outside = 1 - sum(row.multiply_ms for row in rows) / total
        lines = [f"{'step':<34}{'backend':<11}{'output':<20}{'ms':>9}{'share':>7}  with, why"]
        for row in rows:
            with_what = ", ".join(row.fused)
            note = "; ".join(part for part in (with_what, row.why) if part)
            shape = "x".join(map(str, row.shape))
            lines.append(f"{row.name:<34}{row.backend:<11}{shape:<20}{row.ms:>9.3f}{row.ms / total:>7.1%}  {note}")
        memory = self.memory()
        if self.precisions.chosen:
            lines.append(
                f"{len(self.precisions.chosen)} sparse convolutions in a short precision; on the calibration the "
                f"results are at least {self.precisions.decibels:.1f} dB above their difference from float32"
            )
        lines.append(
            f"{len(rows)} steps, {total:.2f} ms on {torch.get_num_threads()} thread(s), {outside:.0%} of it not "
            f"multiplying; arena {memory['arena'] / 1e6:.1f} MB, inputs, results and tensors of torch "
            f"{memory['outside'] / 1e6:.1f} MB, parameters and plans {memory['parameters'] / 1e6:.1f} MB"
        )
        return "\n".join(lines)


def _ended(run: Run, memory: Memory, last: list[Slot]) -> Run:
    """A step that afterwards drops the tensors that no later step needs."""
    if not last:
        return run

    def run_and_drop() -> None:
        run()
        for slot in last:
            memory.outside.pop(slot, None)

    return run_and_drop


def _unit(step: SparseConvStep) -> tuple[int, int]:
    """Source and target channels of a unit of a step."""
    coarse, fine = step.geometry[-2:]
    return (coarse, fine) if step.adjoint else (fine, coarse)


def _transformed(memory: Memory, x: Value) -> Tensor:
    """The tensor of a value after its scale, shift and activation. Its padding adds no larger number."""
    tensor = memory.map_reader(x.slot)()
    scale, shift, slope = memory.input_transform(x)
    if scale is not None and shift is not None:
        tensor = tensor * scale[:, :, None, None] + shift[:, :, None, None]
    return tensor if slope is None else torch.where(tensor <= 0, tensor * slope[:, None, None], tensor)


def _holds_convolutions(module: nn.Module | None, step: Fallback) -> bool:
    if module is None:
        return any(f"{one.__name__} runs in torch" in step.why for one in rules.FUNCTIONAL_CONVOLUTIONS)
    return any(isinstance(one, (SparseConv, *DENSE_CLASSES)) for one in module.modules())


def _results(program: Program, memory: Memory) -> Any:
    found = fx.node.map_aggregate(program.result, lambda one: memory.outside[one] if isinstance(one, Slot) else one)
    return found if program.structure is None else pytree.tree_unflatten(found, program.structure)
