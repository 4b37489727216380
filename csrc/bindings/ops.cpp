// Schemas of the torch ops, through torch's stable ABI: one binary serves every torch from 2.10 on.
// Fake implementations, autograd and autocast rules are in sparsegan/ops.py.
#include <torch/csrc/stable/library.h>

// plan, adjoint_plan: int32 arrays from sparsegan.plan for the same support and geometry, fine -> coarse and coarse ->
// fine.
//   `adjoint` says which of the two this op runs; the other is there for its gradient (without it, no gradient).
// geometry: {coarse channels, fine channels, groups, kernel h w, stride h w, padding h w, dilation h w}.
STABLE_TORCH_LIBRARY(sparsegan, m) {
  m.def(
      "gather(Tensor x, Tensor values, Tensor? bias, Tensor? plan, Tensor? adjoint_plan, int[] geometry, bool adjoint, "
      "SymInt[] output_size) -> Tensor");
  m.def(
      "wgrad(Tensor gy, Tensor x, Tensor? plan, Tensor? adjoint_plan, int[] geometry, bool adjoint, SymInt nnz) -> "
      "Tensor");
}
