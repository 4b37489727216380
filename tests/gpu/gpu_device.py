"""Where these tests run. SPARSEGAN_TEST_DEVICE=cpu runs those that can on a CPU: a check of the tests themselves."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("SPARSEGAN_TEST_DEVICE", "cuda"))
DTYPES = [torch.float32, torch.bfloat16] + ([torch.float16] if DEVICE.type == "cuda" else [])

on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="about CUDA itself")

# Float32 of torch's own layers is compared with: not rounded to TF32.
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
