"""Runs every kernel on small layers, for compute-sanitizer to watch (benchmarks/gpu.sh)."""

from __future__ import annotations

import torch
from torch import nn

import sparsegan as sg


def main() -> None:
    torch.manual_seed(0)
    layers = [
        (nn.Conv2d(16, 32, 3, padding=1), 9),
        (nn.Conv2d(16, 32, 4, 2, 1), 10),
        (nn.Conv2d(8, 32, 7, padding=3), 11),
        (nn.Conv2d(16, 32, 3, padding=2, dilation=2, groups=2), 8),
        (nn.ConvTranspose2d(64, 32, 4, 2, 1), 4),
        (nn.ConvTranspose2d(64, 32, 4), 1),
    ]
    for granularity in ("element", "vector:16", "vector:32", "input:4"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for dense, size in layers:
                layer = sg.SparseConv2d if isinstance(dense, nn.Conv2d) else sg.SparseConvTranspose2d
                sparse = layer.from_dense(dense, 0.8, granularity).to("cuda", dtype)
                sparse.backend = "sparse"
                for batch in (1, 5):
                    x = torch.randn(
                        batch, dense.in_channels, size, size, device="cuda", dtype=dtype, requires_grad=True
                    )
                    y = sparse(x)
                    y.backward(torch.randn_like(y))
    torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
