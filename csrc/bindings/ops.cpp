// Schemas of the torch ops, through torch's stable ABI: one binary serves every torch from 2.10 on.
// Fake implementations are in sparsegan/ops/sparse_conv.py, gradients in sparsegan/ops/autograd.py.
#include <torch/csrc/stable/library.h>

// support: int32 [units], sorted positions of the kept units. plan, adjoint_plan: int32 arrays from sparsegan.ops.plan
// for the same support and geometry, fine -> coarse and coarse -> fine.
//   `adjoint` says which of the two this op runs; the other is there for its gradient (without it, no gradient).
// geometry: {coarse channels, fine channels, groups, kernel h w, stride h w, padding h w, dilation h w, coarse vector,
// fine vector}. padding_mode: 0 zeros, 1 reflect, 2 replicate, 3 circular: what lies around x; pad_before: rows and
// columns of it before x (the geometry's padding is zeros and goes with mode 0 only).
// negative_slope: what is not above 0 in the sum is multiplied by it; 1 leaves it, 0 is ReLU.
STABLE_TORCH_LIBRARY(sparsegan, m) {
  m.def(
      "sparse_conv(Tensor x, Tensor values, Tensor? bias, Tensor support, Tensor? plan, Tensor? adjoint_plan, "
      "int[] geometry, bool adjoint, SymInt[] output_size, int padding_mode=0, int[] pad_before=[0, 0], "
      "float negative_slope=1.0) -> Tensor");
  m.def(
      "wgrad(Tensor gy, Tensor x, Tensor support, Tensor? plan, Tensor? adjoint_plan, int[] geometry, bool adjoint, "
      "int padding_mode=0, int[] pad_before=[0, 0]) -> Tensor");
  // What an inference engine runs; neither has a gradient. sparse_conv_fused: plan may be a direct one, values are then
  // in its order; x becomes x * scale + shift (both [N, C]), times slope ([C]) where not above 0, while it is read; y
  // is written in place, after output_activation (0 none, 1 tanh, 2 sigmoid), by PixelShuffle where shuffle > 1, and
  // y_scale and y_shift then hold y's InstanceNorm. pointwise: y = x, or x + other, each changed likewise, after
  // output_activation.
  m.def(
      "sparse_conv_fused(Tensor x, Tensor? scale, Tensor? shift, Tensor? slope, Tensor values, Tensor? bias, "
      "Tensor support, Tensor plan, int[] geometry, bool adjoint, int padding_mode, int[] pad_before, "
      "float negative_slope, int output_activation, int shuffle, Tensor? norm_weight, Tensor? norm_bias, float eps, "
      "Tensor(a!) y, Tensor(b!)? y_scale, Tensor(c!)? y_shift) -> ()");
  m.def(
      "pointwise(Tensor x, Tensor? scale, Tensor? shift, Tensor? slope, Tensor? other, Tensor? other_scale, "
      "Tensor? other_shift, Tensor? other_slope, int output_activation, int repeat, Tensor(a!) y) -> ()");
}
