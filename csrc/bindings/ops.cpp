// Schemas of the torch ops, through torch's stable ABI: one binary serves every torch from 2.10 on.
// Fake implementations, autograd and autocast rules are in sparsegan/ops.py.
#include <torch/csrc/stable/library.h>

// support: int32 [units], sorted positions of the kept units. plan, adjoint_plan: int32 arrays from sparsegan.plan for
// the same support and geometry, fine -> coarse and coarse -> fine.
//   `adjoint` says which of the two this op runs; the other is there for its gradient (without it, no gradient).
// geometry: {coarse channels, fine channels, groups, kernel h w, stride h w, padding h w, dilation h w, coarse vector,
// fine vector}. padding_mode: 0 zeros, 1 reflect, 2 replicate, 3 circular: what lies around x; pad_before: rows and
// columns of it before x (the geometry's padding is zeros and goes with mode 0 only).
// negative_slope: what is not above 0 in the sum is multiplied by it; 1 leaves it, 0 is ReLU.
STABLE_TORCH_LIBRARY(sparsegan, m) {
  m.def(
      "gather(Tensor x, Tensor values, Tensor? bias, Tensor support, Tensor? plan, Tensor? adjoint_plan, "
      "int[] geometry, bool adjoint, SymInt[] output_size, int padding_mode=0, int[] pad_before=[0, 0], "
      "float negative_slope=1.0) -> Tensor");
  m.def(
      "wgrad(Tensor gy, Tensor x, Tensor support, Tensor? plan, Tensor? adjoint_plan, int[] geometry, bool adjoint, "
      "int padding_mode=0, int[] pad_before=[0, 0]) -> Tensor");
}
