"""Looks at the compressed generator during a run: the best is the result, and patience ends the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_compress import images, small_gan
from torch import Tensor, nn

from sparsegan.compress import CompressionConfig, Compressor, Result, RunConfig, Validation
from sparsegan.compress.step import CompressionTask
from sparsegan.data import Batches
from sparsegan.gans import dcgan
from sparsegan.pruning.schedule import GradualPruning

SCHEDULE = GradualPruning(8, 0.6, every=2)  # reaches 0.6 at step 4


class Planted:
    """Scores of a list, one per look; remembers the generators. Disturbs whatever a careless look would disturb."""

    def __init__(self, *scores: float) -> None:
        self.left, self.looks, self.states = list(scores), [], []  # type: ignore[var-annotated]

    def __call__(self, generator: nn.Module) -> float:
        assert not generator.training
        torch.rand(7)
        return self.left.pop(0)

    def seen(self, look: dict[str, Any], generator: nn.Module) -> None:
        self.looks.append(look)
        self.states.append({name: tensor.clone() for name, tensor in generator.state_dict().items()})


def fit(
    planted: Planted | None, every: int = 1, folder: Path | None = None, resume: bool = False, **settings: Any
) -> Result:
    how = {name: settings.pop(name) for name in ("higher", "patience") if name in settings}
    validation = None if planted is None else Validation(planted, every, seen=planted.seen, **how)
    config = CompressionConfig(generator_lr=1e-2, seed=3, **settings)
    run = RunConfig(folder, resume, checkpoint_every=3, quiet=True)
    both = small_gan()
    compressor = Compressor(*both, dcgan.objective, SCHEDULE, config, run=run, validate=validation)
    return compressor.fit(Batches(images(), 4))


def equal(generator: nn.Module, state: dict[str, Tensor]) -> bool:
    found = generator.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in found)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.5}, {"regrow": 0.5}])
@pytest.mark.parametrize(("higher", "best"), [(False, 6), (True, 5)])
def test_the_best_look_at_the_full_sparsity_is_the_result(higher: bool, best: int, settings: dict[str, Any]) -> None:
    # Steps 1 to 4 have not reached the sparsity, so their scores count nothing. Not a number is never the best.
    planted = Planted(-9, 9, -9, 9, 5, 1, float("nan"), 1)
    result = fit(planted, higher=higher, **settings)
    assert [look["step"] for look in result.looks if look["full"]] == [5, 6, 7, 8]
    assert [look["step"] for look in result.looks if look["best"]][-1] == best
    assert equal(result.generator, planted.states[best - 1])
    assert not equal(result.generator, planted.states[7])
    assert not result.optimizer.state
    plain = fit(None, **settings)  # looks change nothing in the run itself
    assert plain.history == result.history
    assert equal(plain.generator, planted.states[7])
    assert plain.looks == []


def test_looks_are_taken_at_their_steps_and_at_the_end() -> None:
    assert [look["step"] for look in fit(Planted(3, 2, 1), every=3).looks] == [3, 6, 8]
    last = fit(Planted(1), every=100)
    assert [(look["step"], look["best"]) for look in last.looks] == [(8, True)]
    assert last.optimizer.state  # the last generator is the best, so the optimizer continues


def test_patience_ends_the_run_and_a_resumed_run_stays_ended(tmp_path: Path) -> None:
    planted = Planted(0, 0, 0, 0, 3, 3, 4)
    result = fit(planted, folder=tmp_path, patience=2)
    assert [row["step"] for row in result.history] == list(range(7))
    assert equal(result.generator, planted.states[4])
    again = fit(Planted(), folder=tmp_path, resume=True, patience=2)
    assert again.looks == result.looks
    assert equal(again.generator, planted.states[4])
    with pytest.raises(ValueError, match=r"validation was \{.*'patience': 2\} and is \{.*'patience': 3\}"):
        fit(Planted(), folder=tmp_path, resume=True, patience=3)


def test_a_resumed_run_has_the_same_looks_and_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(Planted(0, 0, 0, 0, 5, 2, 3, 4))
    step = CompressionTask.step

    def stopping(task: CompressionTask, number: int, batch: Any) -> dict[str, float]:
        if number == 7:  # the last checkpoint is that after step 6, whose look is the best
            raise KeyboardInterrupt
        return step(task, number, batch)

    with monkeypatch.context() as patched:
        patched.setattr(CompressionTask, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(Planted(0, 0, 0, 0, 5, 2, 3), folder=tmp_path)
    parts = fit(Planted(3, 4), folder=tmp_path, resume=True)
    assert parts.looks == whole.looks
    assert parts.history == whole.history
    assert equal(parts.generator, whole.generator.state_dict())


@pytest.mark.parametrize(("how", "words"), [({"every": 0}, "every is 0"), ({"patience": -1}, "patience is -1")])
def test_wrong_settings_are_refused_by_name(how: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Validation(Planted(), **{"every": 1, **how})  # type: ignore[arg-type]
