"""Random numbers of a batch, drawn once for every user, and the states of random generators, kept, seeded and restored.

Each device has a random generator of its own: ``torch.randn(..., device="cuda")`` draws from the GPU's. Numbers that
two networks need alike are therefore drawn once and handed to both (:class:`Draws`). Where a network draws within its
own forward, the states of all its devices are restored before the second network runs.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

#: ``draw(name, function)`` returns what ``function()`` draws, a tensor or a tuple, list or dict of tensors. The name
#: tells these numbers from others.
Draw = Callable[[str, Callable[[], Any]], Any]

#: The state of each device's generator.
States = dict[torch.device, Tensor]

CPU = torch.device("cpu")


def afresh(name: str, draw: Callable[[], Any]) -> Any:
    """A :data:`Draw` that draws new numbers at each call."""
    return draw()


class Draws:
    """The random numbers of one batch, drawn once and used by every generator under comparison.

    ``draws(name, draw)`` returns ``draw()`` at the first call with a name, and the very same object at each later call:
    a tensor, or a tuple, list or dict of tensors, for example noise and labels. It raises RuntimeError where a tensor
    was changed in place in between, and TypeError where ``draw()`` returns anything else.

    Unnamed numbers (noise within a network's forward, dropout) repeat too: the first pass over the batch runs in
    `first`, each later pass in `again`. Where the first pass drew unnamed numbers, a later pass starts from the states
    that `devices` had before the first pass. Otherwise no state is touched.
    """

    def __init__(self, devices: Iterable[torch.device] = (CPU,)) -> None:
        self.devices = list(devices)
        self._drawn: dict[str, tuple[Any, list[int], States]] = {}  # the numbers, their versions, the states after them
        self._before: States = {}
        self._last: States = {}
        self._unnamed = self._rewound = False

    def __call__(self, name: str, draw: Callable[[], Any]) -> Any:
        if name not in self._drawn:
            self._look()
            numbers = draw()
            tensors = pytree.tree_leaves(numbers)
            strange = [type(one).__name__ for one in tensors if not isinstance(one, Tensor)]
            if strange or not tensors:
                what = ", ".join(strange) or f"an empty {type(numbers).__name__}"
                raise TypeError(
                    f"the random numbers {name!r} are or hold {what}; they must be a tensor, or a tuple, list or dict "
                    "of tensors"
                )
            self._last = states(self.devices)
            self._drawn[name] = numbers, list(map(version_of, tensors)), self._last
            return numbers
        numbers, versions, after = self._drawn[name]
        if list(map(version_of, pytree.tree_leaves(numbers))) != versions:
            raise RuntimeError(
                f"the random numbers {name!r} were changed in place; a function must work on a copy of them"
            )
        if self._rewound:
            set_states(after)
        return numbers

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first pass, which the others repeat, runs within this block."""
        self._before = self._last = states(self.devices)
        yield
        self._look()

    @contextmanager
    def again(self) -> Iterator[None]:
        """One more pass with the first pass's numbers runs within this block. The states are restored afterwards."""
        if not self._unnamed:
            yield
            return
        with repeated(self._before):
            self._rewound = True
            try:
                yield
            finally:
                self._rewound = False

    def _look(self) -> None:
        """Records whether unnamed numbers were drawn since the last look."""
        now = states(self._last)
        changed = (not torch.equal(state, now[device]) for device, state in self._last.items())
        self._unnamed = self._unnamed or any(changed)


def version_of(tensor: Tensor) -> int:
    """torch's count of the in-place changes of a tensor; 0 for an inference tensor, which has no count."""
    return 0 if tensor.is_inference() else tensor._version


def devices_of(*networks: nn.Module | None) -> list[torch.device]:
    """The CPU, and each other device of the networks' tensors that has a generator on this machine."""
    found = {CPU: None}
    for network in networks:
        if network is not None:
            found |= {tensor.device: None for tensor in chain(network.parameters(), network.buffers())}
    return [device for device in found if device == CPU or _module(device) is not None]


def states(devices: Iterable[torch.device]) -> States:
    """The states of these devices' generators."""
    return {device: _state(device) for device in devices}


def set_states(kept: States) -> None:
    """Restores states that `states` returned."""
    for device, state in kept.items():
        if device == CPU:
            torch.set_rng_state(state)
        else:
            _module(device).set_rng_state(state, *_index(device))


@contextmanager
def undisturbed(devices: Iterable[torch.device] | None = None) -> Iterator[States]:
    """Restores the states of `devices`, by default of all that are in use, at the end of the block.

    Yields the states at its beginning.
    """
    kept = states(_all() if devices is None else devices)
    try:
        yield kept
    finally:
        set_states(kept)


@contextmanager
def repeated(kept: States) -> Iterator[None]:
    """Within it the generators draw the numbers that follow these states. Afterwards they go on as before the block."""
    with undisturbed(kept):
        set_states(kept)
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it all devices draw from `seed`. Afterwards they go on as before the block.

    An accelerator that nothing has used yet is left alone: its first use would cost seconds and memory.
    """
    devices = _all()
    with undisturbed(devices):
        seed_devices(devices, seed)
        yield


def seed_devices(devices: Iterable[torch.device], seed: int) -> None:
    """Seeds the random generators of these devices and of no other."""
    for device in devices:
        if device == CPU:
            torch.default_generator.manual_seed(seed)
        else:
            set_states({device: torch.Generator(device).manual_seed(seed).get_state()})


# States in the checkpoints of a run


def run_state(device: torch.device) -> dict[str, Any]:
    """The states that training on `device` draws from: those of Python, of the CPU and of the device."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(words), gauss]}
    if device != CPU and _module(device) is not None:
        state["device"] = {"type": device.type, "state": _state(device)}
    return state


def set_run_state(state: dict[str, Any], device: torch.device, seed: int) -> None:
    """Restores what `run_state` returned.

    The numbers of a device of another type cannot be continued: `device` is then seeded with `seed`, with one warning.
    """
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kept = state.get("device", {"type": "cpu"})
    if kept["type"] != device.type:
        seed_devices([one for one in (device,) if one != CPU and _module(one) is not None], seed)
        warnings.warn(
            f"the run was on a device of type {kept['type']} and goes on on {device}, whose random numbers are others: "
            "it will not give what it would have given there",
            stacklevel=3,
        )
    elif device != CPU:
        set_states({device: kept["state"]})


# Devices


def _all() -> list[torch.device]:
    """The CPU and every accelerator that is in use."""
    accelerator = torch.accelerator.current_accelerator()
    module = None if accelerator is None else torch.get_device_module(accelerator)
    if accelerator is None or module is None or not getattr(module, "is_initialized", module.is_available)():
        return [CPU]
    return [CPU, *(torch.device(accelerator.type, index) for index in range(module.device_count()))]


def _module(device: torch.device) -> Any:
    """torch's module for a kind of device; None where this machine has no such device, or the device no generator."""
    try:
        module = torch.get_device_module(device)
    except RuntimeError:  # the meta device, a backend that is not there
        return None
    return module if hasattr(module, "get_rng_state") and module.is_available() else None


def _state(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device == CPU else _module(device).get_rng_state(*_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """The arguments that tell a module's functions which device; torch.mps has one device and takes none."""
    return () if device.type == "mps" else (device,)
