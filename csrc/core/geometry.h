// The geometry of one convolution: a relation between two grids.
//
// A convolution and its transpose connect a *coarse* grid with a *fine* grid. The coarse grid is the output of a
// convolution and the input of a transposed convolution. The fine grid is `stride` times denser. Kernel position i
// joins coarse index p with fine index
//     a = p * stride + offset(i),   offset(i) = i * dilation - padding.
// With a = (p + shift) * stride + phase and 0 <= phase < stride, each kernel position is a plain shift between the
// coarse grid and one phase plane of the fine grid. The kernels see only these shifts and phases.
#pragma once

#include <cstdint>
#include <vector>

namespace sparsegan {

struct Axis {
  int64_t kernel = 1;
  int64_t stride = 1;
  int64_t padding = 0;  // before the first element; padding after the last element only changes the output size
  int64_t dilation = 1;

  int64_t offset(int64_t i) const { return i * dilation - padding; }
  int64_t shift(int64_t i) const {
    const int64_t a = offset(i);
    return a >= 0 ? a / stride : -((-a + stride - 1) / stride);
  }
  int64_t phase(int64_t i) const { return offset(i) - shift(i) * stride; }
  // Returns the source elements, of all phases together, that a tile of `tile` targets reads along this axis.
  int64_t window(bool adjoint, int64_t tile) const;
};

struct Geometry {
  int64_t coarse_channels = 0;
  int64_t fine_channels = 0;
  int64_t groups = 1;
  Axis h, w;
  // A unit is coarse_vector consecutive coarse channels or fine_vector consecutive fine channels at one kernel
  // position. At least one of the two numbers is 1.
  int64_t coarse_vector = 1;
  int64_t fine_vector = 1;

  int64_t phases() const { return h.stride * w.stride; }
  // The phase of the fine grid that the kernel position (row, column) joins with the coarse grid.
  int64_t phase(int64_t row, int64_t column) const { return h.phase(row) * w.stride + w.phase(column); }
  int64_t positions() const { return h.kernel * w.kernel; }
  int64_t fine_channels_per_group() const { return fine_channels / groups; }
  int64_t coarse_channels_per_group() const { return coarse_channels / groups; }
  // The size of the dense weight [coarse_channels, fine_channels / groups, kernel_h, kernel_w].
  int64_t weight_size() const { return coarse_channels * fine_channels_per_group() * positions(); }
  int64_t vector() const { return coarse_vector * fine_vector; }  // weights per unit
  // The number of units in the dense weight, from which a support keeps some (unit.h has their order).
  int64_t units() const { return weight_size() / vector(); }

  // Reads the flat list that the ops pass: {coarse, fine, groups, kernel h w, stride h w, padding h w, dilation h w,
  // coarse vector, fine vector}. Throws std::invalid_argument where a number is out of range.
  static Geometry from_list(const std::vector<int64_t>& list);
};

}  // namespace sparsegan
