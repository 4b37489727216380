// The geometry of one convolution, seen as a relation between two grids.
//
// A convolution and its transpose connect a *coarse* grid (a convolution's output, a transposed convolution's input)
// with a *fine* one, `stride` times denser: kernel position i joins coarse index p with fine index
//     a = p * stride + offset(i),   offset(i) = i * dilation - padding.
// Written as a = (p + shift) * stride + phase with 0 <= phase < stride, every kernel position is a plain shift between
// the coarse grid and one phase plane of the fine grid: that is all the kernels ever see.
#pragma once

#include <cstdint>
#include <vector>

namespace sparsegan {

struct Axis {
  int64_t kernel = 1;
  int64_t stride = 1;
  int64_t padding = 0;  // before the first element; what follows the last one only changes the output size
  int64_t dilation = 1;

  int64_t offset(int64_t i) const { return i * dilation - padding; }
  int64_t shift(int64_t i) const {
    const int64_t a = offset(i);
    return a >= 0 ? a / stride : -((-a + stride - 1) / stride);
  }
  int64_t phase(int64_t i) const { return offset(i) - shift(i) * stride; }
  // Source elements that a tile of `tile` targets reads along this axis, the source's phases together.
  int64_t window(bool adjoint, int64_t tile) const;
};

struct Geometry {
  int64_t coarse_channels = 0;
  int64_t fine_channels = 0;
  int64_t groups = 1;
  Axis h, w;
  // A kept unit is so many consecutive coarse channels, or fine ones, at one kernel position; at least one is 1.
  int64_t coarse_vector = 1;
  int64_t fine_vector = 1;

  int64_t phases() const { return h.stride * w.stride; }
  // Of the fine grid, that the kernel position at (row, column) joins with the coarse grid.
  int64_t phase(int64_t row, int64_t column) const { return h.phase(row) * w.stride + w.phase(column); }
  int64_t positions() const { return h.kernel * w.kernel; }
  int64_t fine_channels_per_group() const { return fine_channels / groups; }
  int64_t coarse_channels_per_group() const { return coarse_channels / groups; }
  // Elements of the dense weight [coarse_channels, fine_channels / groups, kernel_h, kernel_w].
  int64_t weight_size() const { return coarse_channels * fine_channels_per_group() * positions(); }
  int64_t vector() const { return coarse_vector * fine_vector; }
  // Units that a support chooses from: the dense weight [coarse units, fine units per group, kernel_h, kernel_w].
  int64_t units() const { return weight_size() / vector(); }

  // From the flat list the ops carry: {coarse, fine, groups, kernel h w, stride h w, padding h w, dilation h w,
  // coarse vector, fine vector}.
  // Throws std::invalid_argument with a sentence when a number is out of range.
  static Geometry from_list(const std::vector<int64_t>& list);
};

}  // namespace sparsegan
