"""The plan compiler: its taps, and the checks of untrusted supports, plans and geometries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Problem, problems
from hypothesis import given
from hypothesis import strategies as st

from sparsegan import ops
from sparsegan.geometry import Geometry
from sparsegan.ops import native
from sparsegan.ops.plan import compile_plan

GEOMETRY = Geometry(8, 6, 2, (3, 3), (2, 2), (1, 1), (1, 1))
VECTORS = [replace(GEOMETRY, coarse_vector=4), replace(GEOMETRY, fine_vector=3)]


@given(problems())
def test_every_kept_weight_is_one_tap(p: Problem) -> None:
    support = p.support()
    for adjoint, plan in enumerate(p.plans(support)):
        nnz = len(support)
        assert plan.numel() == native.plan_size(p.numbers, bool(adjoint), nnz)
        if adjoint:
            value_index = plan[plan.numel() - nnz :]
            assert torch.equal(value_index.sort().values, torch.arange(nnz, dtype=torch.int32))


@pytest.mark.parametrize(
    ("support", "words"),
    [([3, 2], "sorted"), ([2, 2], "sorted"), ([-1], "-1"), ([8 * 3 * 9], "216")],
)
def test_bad_support(support: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compile_plan(torch.tensor(support, dtype=torch.int32), GEOMETRY)


@given(st.data())
def test_a_hostile_plan_raises_or_computes_but_never_reads_outside(data: st.DataObject) -> None:
    """With any number of a plan replaced by any other number, the op raises or returns a result of the right shape."""
    adjoint = data.draw(st.booleans())
    geometry = data.draw(st.sampled_from([GEOMETRY, *VECTORS]))
    support = torch.arange(0, 8 * 3 * 9 // geometry.vector, 3, dtype=torch.int32)
    plan = compile_plan(support, geometry, adjoint)
    for _ in range(data.draw(st.integers(1, 3))):
        spoilt = data.draw(st.sampled_from([plan, support]))
        at = data.draw(st.integers(0, spoilt.numel() - 1))
        spoilt[at] = data.draw(st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-2, 80)))
    x = torch.randn(2, 8 if adjoint else 6, 4 if adjoint else 8, 4 if adjoint else 8)
    size = [6, 8, 8] if adjoint else [8, 4, 4]
    taps = (support, None, plan) if adjoint else (support, plan, None)
    values = torch.randn(len(support) * geometry.vector)
    try:
        y = ops.sparse_conv(x, values, None, *taps, geometry.numbers(), adjoint, size)
        assert y.shape == (2, *size)
        assert ops.wgrad(y, x, *taps, geometry.numbers(), adjoint).shape == values.shape
    except ValueError as error:
        refused = str(error)
        assert refused.startswith("plan: ")


def test_a_coarse_grid_of_one_element_separates_the_kernel_positions() -> None:
    g = Geometry(5, 4, 1, (4, 3), (1, 2), (0, 1), (1, 2))
    assert g.for_coarse_size(7, 7) == g
    assert g.for_coarse_size(1, 7).stride == (4, 2)
    assert g.for_coarse_size(1, 1).stride == (4, 3)


class _Changing(list[int]):
    """A list that reads differently each time, like a list that another thread changes."""

    def __iter__(self) -> Iterator[int]:
        self.append(self.pop())
        self.reads = getattr(self, "reads", 0) + 1
        return iter([8, *self[1:]] if self.reads % 2 else [8 * 512, *self[1:]])

    def __len__(self) -> int:
        self.asked = getattr(self, "asked", 0) + 1
        return super().__len__() + (self.asked > 1) * 100


def test_a_geometry_is_read_once() -> None:
    support = np.arange(4, dtype=np.int32)
    plain = native.compile_plan(support, GEOMETRY.numbers(), True)
    for _ in range(50):
        assert (native.compile_plan(support, _Changing(GEOMETRY.numbers()), True) == plain).all()


@pytest.mark.parametrize("numbers", [[], [1] * 5, [8, 6, 2, 3, 3, 2, 2, 1, 1, 1, 1, 1, 2**70], [8.0] * 13, [None] * 13])
def test_invalid_geometries_are_refused(numbers: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        native.compile_plan(np.arange(4, dtype=np.int32), numbers, False)
