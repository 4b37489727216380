"""Whole generators: the engine of ``optimize_for_inference`` and the drop-in layers against the best dense engine.

Every convolution is sparse; its kept units are at random places and have random values. Batch norms hold the statistics
of a forward in training mode. All engines get the same weights and inputs and are timed in turns, after their outputs
were compared. A row names the dense engines that cannot run its generator, with their reasons.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ..clock import Clock
from ..engine import Engine, optimize_for_inference
from ..engine.precision import check_precision, decibels
from ..engine.steps import SparseConvStep, Torch
from ..gans import GANS
from ..gans.hifigan import SIZES as HIFIGAN_SIZES
from ..nn.granularity import check_channels, check_granularity, magnitude_mask
from ..nn.kept_weights import DenseConv
from ..nn.layer import DENSE_CLASSES
from ..ops import native
from ..profiling.layers import interleaved_times
from ..profiling.macs import count_macs
from ..pruning.surgery import sparsify
from .cases import TARGET_SHARE, named
from .engines import Engine as Call
from .engines import Inputs, against_dense, makers, output_of, short_engines, willing_engines
from .layers import check_same
from .results import Row, verdict


@dataclass(frozen=True)
class GeneratorCase:
    """A reference generator and its inputs.

    ``network``: arguments of its GAN's ``build``. ``size``: height and width of the images that it makes, or the number
    of samples of the sounds. ``target``: the target speed-up at 90 % element sparsity, on AVX-512; ``None`` for no
    target. ``first_call``: the seconds that the first call may take. ``frame``: height and width of the input images,
    where they are not those of ``size``.
    """

    title: str
    gan: str
    network: dict[str, Any] = field(hash=False)
    size: int
    batch: int
    target: float | None
    first_call: float | None = None
    frame: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.title} batch {self.batch}"

    def dense(self) -> nn.Module:
        """The generator, freshly initialised, in torch's plain layout."""
        return GANS[self.gan].build(**self.network)[0]

    def inputs(self, batch: int) -> Inputs:
        """Random float32 inputs of the generator's forward."""
        inputs = GANS[self.gan].example(self.network, batch, self.size)
        if self.frame is None:
            return inputs
        return tuple(torch.rand(*images.shape[:2], *self.frame) * 2 - 1 for images in inputs)


#: The frames of a mel spectrogram of five seconds of speech, and the samples of a frame, in HiFi-GAN.
MEL_FRAMES, HOP = 430, 256

#: The reference generators that a run times by default, at their papers' sizes.
GENERATORS = (
    GeneratorCase(
        "CycleGAN ResNet-9 @256x256", "cyclegan", {"width": 64, "blocks": 9, "one_way": True}, 256, 1, 6, first_call=2
    ),
    GeneratorCase("StarGAN @128x128", "stargan", {"width": 64, "domains": 5}, 128, 1, target=6),
    GeneratorCase("StarGAN @128x128", "stargan", {"width": 64, "domains": 5}, 128, 16, target=6),
    GeneratorCase("pix2pix U-Net-256 @256x256", "pix2pix", {"width": 64, "downs": 8}, 256, 1, target=5),
    GeneratorCase("SRGAN SRResNet-16 96->384", "srgan", {"width": 64, "blocks": 16}, 384, 1, target=5),
    GeneratorCase("DCGAN @64x64", "dcgan", {"nz": 100, "width": 64, "channels": 3}, 64, 64, target=5),
)
#: Generators that a run times only if they are named: a row may take minutes.
NAMED_GENERATORS = (
    GeneratorCase("ESRGAN RRDB-6 64->256", "esrgan", {"width": 64, "blocks": 6}, 256, 1, target=None),
    GeneratorCase("ESRGAN RRDB-23 64->256", "esrgan", {"width": 64, "blocks": 23}, 256, 1, target=None),
    GeneratorCase(
        "Real-ESRGAN compact 180x320",
        "esrgan",
        {"generator": "compact", "width": 64, "convs": 16},
        720,
        1,
        target=None,
        frame=(180, 320),
    ),
    GeneratorCase("StyleGAN2 256x256", "stylegan2", {"image_size": 256, "width": 128}, 256, 1, target=None),
    *(
        GeneratorCase(f"HiFi-GAN {name} 5 s", "hifigan", network, MEL_FRAMES * HOP, 1, target=None)
        for name, network in HIFIGAN_SIZES.items()
    ),
)

#: Target speed-ups: of every generator at another sparsity, and of a generator with vectors.
EVERY_GENERATOR = {0.75: 2.2}
VECTORS = {("cyclegan", "vector:4", 0.9): 7.0}
#: Upper limits: the engine's peak memory over the best dense engine's; its fraction of time outside multiplications.
MEMORY_LIMIT, OUTSIDE_LIMIT = 1.0, 0.25
#: The least number of calls for the percentiles.
LATENCY_CALLS = 50


@dataclass(frozen=True)
class GeneratorJob:
    """One row: a generator, a sparsity, a granularity and a number of threads."""

    case: GeneratorCase
    sparsity: float
    granularity: str
    threads: int
    precision: str = "float32"

    @property
    def name(self) -> Row:
        """The fields that identify its row within a run."""
        return {
            "generator": str(self.case),
            "sparsity": self.sparsity,
            "granularity": self.granularity,
            "threads": self.threads,
            "precision": self.precision,
        }


def generator_jobs(
    generators: str, sparsities: list[float], granularities: list[str], threads: list[int], precision: str = "float32"
) -> list[GeneratorJob]:
    """Every row of a run.

    Args:
        generators: parts of generator names, separated by commas; the empty string selects ``GENERATORS``.
        precision: of the engine, as :func:`sparsegan.optimize_for_inference` takes it.

    Raises:
        ValueError: no generator's name contains a part, or a granularity or the precision is not known.
    """
    check_precision(precision, None)
    cases = named("generators", generators, GENERATORS + NAMED_GENERATORS) if generators else list(GENERATORS)
    rows = product(threads, sparsities, map(check_granularity, granularities), cases)
    return [GeneratorJob(case, sparsity, units, count, precision) for count, sparsity, units, case in rows]


def generator_target(job: GeneratorJob, isa: str) -> float | None:
    """The target speed-up of a row over the best dense engine; ``None`` if the row has no target."""
    asked: float | None
    if job.case.target is None or job.precision != "float32":
        return None
    if job.granularity != "element":
        asked = VECTORS.get((job.case.gan, job.granularity, job.sparsity))
    else:
        asked = job.case.target if job.sparsity == 0.9 else EVERY_GENERATOR.get(job.sparsity)
    return None if asked is None or isa not in TARGET_SHARE else asked * TARGET_SHARE[isa]


def both_generators(job: GeneratorJob) -> tuple[nn.Module, nn.Module, Inputs]:
    """A row's generator, dense with zeros in place and sparse, and its inputs. All are the same on every run.

    Layers whose channels are not whole units (3 output channels in the last layer) keep single elements.
    """
    torch.manual_seed(0)
    dense = job.case.dense()
    granularities = {}
    with torch.no_grad():
        for name, layer in dense.named_modules():
            if isinstance(layer, DENSE_CLASSES):
                granularities[name] = _fitting(job.granularity, layer)
                transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
                at_random = torch.rand(layer.weight.shape)
                layer.weight.mul_(magnitude_mask(at_random, job.sparsity, granularities[name], transposed))
        _settle(dense, job.case.inputs(max(job.case.batch, 4)))
    return dense, sparsify(copy.deepcopy(dense), granularity=granularities), job.case.inputs(job.case.batch)


def _fitting(granularity: str, layer: DenseConv) -> str:
    try:
        check_channels(granularity, layer.in_channels, layer.out_channels, layer.groups)
    except ValueError:
        return "element"
    return granularity


def _settle(model: nn.Module, inputs: Inputs) -> None:
    """Gives batch norms the statistics of one forward, then puts the model into evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        model.eval()
        return
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the exact mean, not a step towards the mean
    model.train()(*inputs)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    model.eval()


def time_generator(job: GeneratorJob, seconds: float) -> Row:
    """The fields of a row: times of every engine, of the drop-in layers and of our engine, and their targets.

    Raises ``RuntimeError`` if an engine's output differs from the dense generator's.
    """
    check_memory_can_be_measured()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(job.threads)
        dense, sparse, inputs = both_generators(job)
        start = time.perf_counter()
        engine = optimize_for_inference(sparse, inputs, precision=job.precision)
        assert isinstance(engine, Engine)  # not the engine for a GPU
        engine(*inputs)
        first_call = time.perf_counter() - start
        with torch.inference_mode():
            row = _times(job, dense, sparse, engine, inputs, seconds)
    finally:
        torch.set_num_threads(before)
    memory = {name: peak_memory(job, name) for name in (OURS, row["best_dense"])}
    return {
        **row,
        **verdict(row["ratio"], generator_target(job, native.isa())),
        "first_call_s": first_call,
        "memory": memory,
        "limits": {
            "memory against the dense engine's": _limit(memory[OURS] / memory[row["best_dense"]], MEMORY_LIMIT),
            "time outside multiplications": _limit(row["outside"], OUTSIDE_LIMIT),
            "seconds of the first call": _limit(first_call, job.case.first_call),
        },
        "gflops": 2e-6 * count_macs(sparse, inputs).executed / row["sparse_ms"],
    }


def _limit(value: float, most: float | None) -> Row:
    return {"value": value, "at_most": most, "holds": None if most is None else value <= most}


def _times(
    job: GeneratorJob, dense: nn.Module, sparse: nn.Module, engine: Engine, inputs: Inputs, seconds: float
) -> Row:
    wanted, made = dense(*inputs), engine(*inputs)
    if job.precision == "float32":
        check_same(made, wanted, f"{job.case}: the output of the engine")
    elif (far := decibels(wanted, made)) < LEAST_DB:
        raise RuntimeError(f"{job.case}: the output of the engine is {far:.1f} dB above its error, below {LEAST_DB}")
    others, refused = willing_engines(dense, inputs, job.threads)
    for name, call in {**others, "the drop-in layers": lambda: sparse(*inputs)}.items():
        check_same(output_of(call()), wanted, f"{job.case}: the output of {name}")
    beside = {} if job.precision == "float32" else _beside(job, dense, inputs)
    row = against_dense(lambda: engine(*inputs), others, seconds, layers=lambda: sparse(*inputs), beside=beside)
    if beside:
        row["decibels"] = {
            name: decibels(wanted, output_of(call())) for name, call in beside.items() if name != SINGLE_WEIGHTS
        }
        row["decibels"]["engine"] = decibels(wanted, made)
    (calls,) = interleaved_times(Clock(inputs), [lambda: engine(*inputs)], seconds, least=LATENCY_CALLS)
    steps = engine_profile(engine, inputs, seconds)
    return {
        **row,
        "refused": refused,
        "latency_ms": dict(zip(("p50", "p95", "p99"), np.percentile(calls, [50, 95, 99]).tolist(), strict=True)),
        "outside": 1 - steps[MULTIPLYING] / sum(steps.values()),
        "profile": {"engine": steps, "layers": layers_profile(sparse, inputs, row["layers_ms"])},
        "difference": float((made - wanted).abs().max()),
        "largest_value": float(wanted.abs().max()),
    }


#: The name of the engine in float32 with single weights in `_beside`.
SINGLE_WEIGHTS = "engine, element, float32"
#: A short precision further from the dense generator than this computes something else.
LEAST_DB = 20.0


def _beside(job: GeneratorJob, dense: nn.Module, inputs: Inputs) -> dict[str, Call]:
    """The calls beside an engine in a short precision: short dense engines, and the engine in float32, single weights.

    The generator with single weights has other kept weights at the same sparsity, so that only its time is compared.
    """
    single = optimize_for_inference(both_generators(replace(job, granularity="element"))[1], inputs)
    return {**short_engines(dense, inputs, job.threads), SINGLE_WEIGHTS: lambda: single(*inputs)}


# Time by kind of work

#: Kinds of work. The first two are parts of a sparse_conv, which packs its input and unpacks its output.
MULTIPLYING, PACKING = "multiplying", "packing and unpacking"
DENSE, POINTWISE, REST = "dense convolutions", "norms, activations, sums", "rest"
KINDS = (MULTIPLYING, PACKING, DENSE, POINTWISE, REST)
#: A pattern in the names of torch's ops for each kind of work. The first pattern that matches is taken.
_OPS = {
    MULTIPLYING: re.compile("sparsegan::sparse_conv"),
    POINTWISE: re.compile("norm|relu|clamp|tanh|sigmoid|::add|::mul|::sub|::div"),
    DENSE: re.compile("conv|mkldnn"),
}


def engine_profile(engine: Engine, inputs: Inputs, seconds: float) -> dict[str, float]:
    """Milliseconds of a call of the engine, by kind of work."""
    times = dict.fromkeys(KINDS, 0.0)
    for step, row in zip(engine.steps(*inputs), engine.profile(*inputs, seconds=seconds), strict=True):
        if isinstance(step, SparseConvStep):
            times[MULTIPLYING] += row.multiply_ms
            times[PACKING] += row.ms - row.multiply_ms
        elif isinstance(step, Torch):
            times[DENSE if "conv" in getattr(step.function, "__name__", "") else REST] += row.ms
        else:
            times[POINTWISE] += row.ms
    return times


def layers_profile(model: nn.Module, inputs: Inputs, milliseconds: float, calls: int = 3) -> dict[str, float]:
    """The ``milliseconds`` of a call by kind of work, in the ratios that torch's profiler measures."""
    before = native.part_times()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            model(*inputs)
    times = dict.fromkeys(KINDS, 0.0)
    for event in profiled.key_averages():
        kind = next((kind for kind, names in _OPS.items() if names.search(event.key)), REST)
        times[kind] += event.self_cpu_time_total
    parts = {name: spent - before[name] for name, spent in native.part_times().items()}
    if total := sum(parts.values()):
        times[PACKING] = times[MULTIPLYING] * (1 - parts["multiplying"] / total)
        times[MULTIPLYING] -= times[PACKING]
    total = sum(times.values())
    return {kind: milliseconds * own / total for kind, own in times.items()}


# Memory

OURS = "engine"


def check_memory_can_be_measured() -> None:
    """Raises ``RuntimeError`` on systems that do not report a process's resident memory."""
    if sys.platform != "linux":
        raise RuntimeError(f"this is {sys.platform}; the benchmark of generators measures memory by Linux's /proc")


def peak_memory(job: GeneratorJob, engine: str) -> int:
    """The bytes by which a process grows while an engine runs: weights, plans, activations and workspace.

    They are measured in a separate process, on Linux: the peak of its resident memory during the engine's first calls,
    minus its resident memory after the same engine has run one small layer.
    """
    check_memory_can_be_measured()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, job, engine).result()


def _peak(job: GeneratorJob, engine: str) -> int:
    torch.set_num_threads(job.threads)
    small = nn.Conv2d(4, 4, 3).eval()
    with torch.no_grad():
        _call_of(engine, small, sparsify(copy.deepcopy(small), 0.5), (torch.zeros(1, 4, 8, 8),), job.threads)()
        before = _resident()["VmRSS"]
        call = _call_of(engine, *both_generators(job), job.threads, job.precision)
        _resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        for _ in range(3):
            call()
    return _resident()["VmHWM"] - before


def _call_of(
    engine: str, dense: nn.Module, sparse: nn.Module, inputs: Inputs, threads: int, precision: str = "float32"
) -> Call:
    if engine != OURS:
        return makers(whole=True)[engine](dense, inputs, threads)
    optimized = optimize_for_inference(sparse, inputs, precision=precision)
    return lambda: optimized(*inputs)


def _resident() -> dict[str, int]:
    """Bytes of this process in memory (VmRSS) and their peak (VmHWM), after free memory went back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: 1024 * int(size.split()[0]) for name, size in (line.split(":", 1) for line in lines) if name[:2] == "Vm"
    }
