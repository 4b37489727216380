"""A support that is changed in place: the layer notices the change, checks the support again, and warns."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsegan as sg

X = torch.randn(2, 8, 6, 6)


def layer(backend: str = "sparse", granularity: str = "element") -> sg.SparseConvTranspose2d:
    made = sg.SparseConvTranspose2d(8, 8, 4, 2, 1, sparsity=0.8, granularity=granularity)
    made.backend = backend
    return made


def other_support(of: sg.SparseConvTranspose2d) -> Tensor:
    units = 8 * 8 * 16 // of.geometry.vector
    return torch.randperm(units)[: of.support.shape[0]].sort().values.int()


def assert_right(one: sg.SparseConvTranspose2d) -> None:
    torch.testing.assert_close(one(X), one.to_dense()(X), rtol=1e-4, atol=1e-5)


#: Ways to write into a buffer. Some of them do not change its version counter.
WRITES: dict[str, Any] = {
    "copy_": lambda support, new: support.copy_(new),
    "detached": lambda support, new: support.detach().copy_(new),
    "data": lambda support, new: support.data.copy_(new),
    "numpy": lambda support, new: support.numpy().__setitem__(slice(None), new.numpy()),
    "set data": lambda support, new: setattr(support, "data", new.clone()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("backend", ["sparse", "dense"])
@pytest.mark.parametrize("granularity", ["element", "vector:4", "input:2"])
@pytest.mark.parametrize("grad", [True, False])
def test_another_valid_support(write: Any, backend: str, granularity: str, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        one = layer(backend, granularity)
        assert_right(one)
        write(one.support, other_support(one))
        with pytest.warns(UserWarning, match="was changed in place, not by load_state_dict"):
            one(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # warns once
            assert_right(one)
            one.support.copy_(one.support.clone())  # equal positions, as when all buffers are copied
            plans = one.plan_cache().plans
            assert_right(one)
            assert one.plan_cache().plans is plans


def test_an_inference_tensor_has_no_version() -> None:
    with torch.inference_mode():
        one = layer()
        assert one.support.is_inference()
        assert_right(one)
        one.support.copy_(other_support(one))
        with pytest.warns(UserWarning, match="was changed in place"):
            one(X)
        assert_right(one)


@pytest.mark.parametrize("backend", ["sparse", "dense"])
def test_an_average_of_positions_is_refused(backend: str) -> None:
    """The usual loop of trainers averages every entry of a state_dict."""
    student, average = layer(backend), layer(backend)
    average(X)
    with torch.no_grad():
        for key, value in average.state_dict().items():
            value.copy_(0.5 * value + 0.5 * student.state_dict()[key])
    average.support[1] = average.support[0]  # averaged positions may stay distinct by luck
    words = "no valid support: .* changed in place .for example by averaging .* sparsegan.pruning.averaging"
    for _ in range(2):
        with pytest.raises(ValueError, match=words):
            average(X)
    average.load_state_dict(student.state_dict())
    torch.testing.assert_close(average(X), student(X))


def test_averaged_model_of_torch() -> None:
    """torch's AveragedModel copies buffers in place. Plans follow the support. Other positions give a warning."""
    student = nn.Sequential(layer())
    average = torch.optim.swa_utils.AveragedModel(student)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            student[0].values.data.add_(0.1)
            average.update_parameters(student)
            assert_right(average.module[0])
    student[0].set_support(other_support(student[0]), student[0].values.detach())
    average.update_parameters(student)
    with pytest.warns(UserWarning, match="averages over several supports"):
        average(X)
    assert_right(average.module[0])


def test_values_of_another_length() -> None:
    one = layer()
    one.values.data = one.values.data[:-1]
    with pytest.raises(ValueError, match=r"\d+ values do not fit \d+ positions"):
        one(X)


def test_replacing_the_buffer_is_no_change_in_place() -> None:
    one = layer()
    one(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.support = other_support(one)
        assert_right(one)
        again = copy.copy(one)  # uses the same tensors and must follow their changes
        one.set_support(other_support(one), one.values.detach() + 1)
        assert_right(again)
        assert torch.equal(again(X), one(X))
