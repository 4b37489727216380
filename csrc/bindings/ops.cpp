// The schemas of the torch ops. They use torch's stable ABI, so that one binary serves every torch from 2.10 on.
// Fake implementations are in sparsegan/ops/sparse_conv.py, gradients in sparsegan/ops/autograd.py.
#include <torch/csrc/stable/library.h>

// support: int32 [units], the sorted positions of the kept units.
// plan, adjoint_plan: int32 arrays from sparsegan.ops.plan for this support and geometry, the first fine -> coarse, the
// second coarse -> fine.
// adjoint: which of the two plans this op runs. The other plan is needed for the gradient only.
// geometry: {coarse channels, fine channels, groups, kernel h w, stride h w, padding h w, dilation h w, coarse vector,
// fine vector}.
// padding_mode: the elements around x: 0 zeros, 1 reflect, 2 replicate, 3 circular.
// pad_before: rows and columns of reflect, replicate or circular padding before x. Zeros are the geometry's padding.
// negative_slope: sums at or below 0 are multiplied by this slope; 1 leaves them unchanged, 0 is ReLU.
STABLE_TORCH_LIBRARY(sparsegan, m) {
  m.def(
      "sparse_conv(Tensor x, Tensor values, Tensor? bias, Tensor support, Tensor? plan, Tensor? adjoint_plan, "
      "int[] geometry, bool adjoint, SymInt[] output_size, int padding_mode=0, int[] pad_before=[0, 0], "
      "float negative_slope=1.0) -> Tensor");
  m.def(
      "wgrad(Tensor gy, Tensor x, Tensor support, Tensor? plan, Tensor? adjoint_plan, int[] geometry, bool adjoint, "
      "int padding_mode=0, int[] pad_before=[0, 0]) -> Tensor");
  // An inference engine runs the next two ops. They have no gradient and write y in place.
  // sparse_conv_fused: plan may be a direct plan; values are then in the order of its taps. While x is read, it becomes
  // x * scale + shift (both [N, C]), and results at or below 0 are multiplied by slope ([C]). While y is written, it
  // passes negative_slope, then output_activation (its index in sparsegan.ops.OUTPUT_ACTIVATIONS), then PixelShuffle if
  // shuffle > 1. If y_scale and y_shift are given, they receive the scale and shift that apply an InstanceNorm to y. If
  // panel (uint8) is given, it is a SharedPanel (csrc/cpu/conv.h) of panel_channels channels: the call reads the first
  // panel_packed channels of x from it, and packs the other channels of x into it. Its tile and its bytes are those of
  // sparsegan_shared_panel (c_api.cpp).
  // values of a shorter dtype than x ask for a short precision: int16 or bfloat16 with units of 2k source channels,
  // int8 with units of 4k, x float32, and values in the order of the taps. x is then rounded to that dtype: integers
  // are x * to_integer, limited to [-most, most], and their sums become float32 by sum_scale ([target channels]).
  // pointwise: y = x, or y = x + other, where x and other are transformed as x is above; then output_activation.
  m.def(
      "sparse_conv_fused(Tensor x, Tensor? scale, Tensor? shift, Tensor? slope, Tensor values, Tensor? bias, "
      "Tensor support, Tensor plan, int[] geometry, bool adjoint, int padding_mode, int[] pad_before, "
      "float negative_slope, int output_activation, int shuffle, Tensor? norm_weight, Tensor? norm_bias, float eps, "
      "Tensor(a!) y, Tensor(b!)? y_scale, Tensor(c!)? y_shift, "
      "Tensor(d!)? panel=None, int panel_channels=0, int panel_packed=0, int[] panel_tile=[0, 0], "
      "Tensor? sum_scale=None, float to_integer=1.0, int most=0) -> ()");
  m.def(
      "pointwise(Tensor x, Tensor? scale, Tensor? shift, Tensor? slope, Tensor? other, Tensor? other_scale, "
      "Tensor? other_shift, Tensor? other_slope, int output_activation, int repeat, Tensor(a!) y) -> ()");
}
