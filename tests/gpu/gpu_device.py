"""The device of these tests. SPARSEGAN_TEST_DEVICE=cpu runs the tests that need no GPU, as a check of the tests."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("SPARSEGAN_TEST_DEVICE", "cuda"))
DTYPES = [torch.float32, torch.bfloat16] + ([torch.float16] if DEVICE.type == "cuda" else [])

on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs CUDA")

# The tests compare with torch's own layers in float32, which must not round to TF32.
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
