"""Random numbers: those of a batch, drawn once for all who use them; generators' states, kept, seeded and put back.

Each device has a generator of its own: ``torch.randn(..., device="cuda")`` draws from the GPU's. What is to be the same
twice is therefore drawn once and handed on (:class:`Draws`). Where a network draws within its own forward, the states
of all devices that it is on are set back.
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

#: Gives what its second argument draws; its first one names the numbers.
Draw = Callable[[str, Callable[[], Tensor]], Tensor]

#: The state of each device's generator.
States = dict[torch.device, Tensor]

CPU = torch.device("cpu")


def afresh(name: str, draw: Callable[[], Tensor]) -> Tensor:
    """New numbers at each asking."""
    return draw()


class Draws:
    """The random numbers of one batch, drawn once and used by every generator under comparison.

    ``draws(name, draw)`` gives ``draw()`` at the first asking of a name, and the very same tensor at each later asking.
    Raises RuntimeError where it was changed in place meanwhile.

    Numbers that nobody asks for by name (noise within a network's forward, dropout) come out the same too: the first
    pass over the batch runs in `first`, each later one in `again`. Where the first pass drew such numbers, a later one
    starts from the states of `devices` before the first; where it did not, no state is touched.
    """

    def __init__(self, devices: Iterable[torch.device] = (CPU,)) -> None:
        self.devices = list(devices)
        self._drawn: dict[str, tuple[Tensor, int, States]] = {}  # the numbers, their version, the states after them
        self._before: States = {}
        self._last: States = {}
        self._unnamed = self._rewound = False

    def __call__(self, name: str, draw: Callable[[], Tensor]) -> Tensor:
        if name not in self._drawn:
            self._look()
            tensor = draw()
            if not isinstance(tensor, Tensor):
                raise TypeError(f"the random numbers {name!r} are a {type(tensor).__name__}; they must be one tensor")
            self._last = states(self.devices)
            self._drawn[name] = tensor, version_of(tensor), self._last
            return tensor
        tensor, version, after = self._drawn[name]
        if version_of(tensor) != version:
            raise RuntimeError(
                f"the random numbers {name!r} were changed in place; a function must work on a copy of them"
            )
        if self._rewound:
            set_states(after)
        return tensor

    @contextmanager
    def first(self) -> Iterator[None]:
        """The pass that the others repeat runs within this block."""
        self._before = self._last = states(self.devices)
        yield
        self._look()

    @contextmanager
    def again(self) -> Iterator[None]:
        """One more pass with the numbers of the first runs within this block. Generators are put back afterwards."""
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
        """Notes whether unnamed numbers were drawn since the last look."""
        now = states(self._last)
        changed = (not torch.equal(state, now[device]) for device, state in self._last.items())
        self._unnamed = self._unnamed or any(changed)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 where torch does not count."""
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
    """Go back to what `states` gave."""
    for device, state in kept.items():
        if device == CPU:
            torch.set_rng_state(state)
        else:
            _module(device).set_rng_state(state, *_index(device))


@contextmanager
def undisturbed(devices: Iterable[torch.device] | None = None) -> Iterator[States]:
    """Puts the generators of devices, by default of all in use, back at the end, as if nothing had been drawn within.

    Yields their states at the beginning.
    """
    kept = states(_all() if devices is None else devices)
    try:
        yield kept
    finally:
        set_states(kept)


@contextmanager
def repeated(kept: States) -> Iterator[None]:
    """Within it, the numbers that were drawn after these states; afterwards generators go on from where they are."""
    with undisturbed(kept):
        set_states(kept)
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it all devices draw from `seed`; afterwards they go on as before.

    An accelerator that nothing has used yet is left alone, for its first use costs seconds and memory.
    """
    devices = _all()
    with undisturbed(devices):
        seed_devices(devices, seed)
        yield


def seed_devices(devices: Iterable[torch.device], seed: int) -> None:
    """Have these devices' generators, and no other ones, draw from `seed`."""
    for device in devices:
        if device == CPU:
            torch.default_generator.manual_seed(seed)
        else:
            set_states({device: torch.Generator(device).manual_seed(seed).get_state()})


# A run's, for its checkpoints


def run_state(device: torch.device) -> dict[str, Any]:
    """The states that training on a device draws from: those of Python, the CPU and the device."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(words), gauss]}
    if device != CPU and _module(device) is not None:
        state["device"] = {"type": device.type, "state": _state(device)}
    return state


def set_run_state(state: dict[str, Any], device: torch.device, seed: int) -> None:
    """Go back to what `run_state` gave. What a device of another type drew cannot go on here: `device` then draws from
    `seed`, which one warning says.
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
    """torch's module for a kind of device, None where this machine has no such device or it has no generator."""
    try:
        module = torch.get_device_module(device)
    except RuntimeError:  # the meta device, a backend that is not there
        return None
    return module if hasattr(module, "get_rng_state") and module.is_available() else None


def _state(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device == CPU else _module(device).get_rng_state(*_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """How a module's functions are told which device; torch.mps has one only, and takes no argument."""
    return () if device.type == "mps" else (device,)
