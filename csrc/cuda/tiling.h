// How a call is cut: which kernel runs, which outputs the lanes of a warp hold, how many slabs of x are staged at a
// time, and how many parts a sum has.
//
// A target is a plane of `rows` x `columns`: the coarse grid, or one phase of the fine grid. A thread holds a *strip*,
// 16, 8 or 4 neighbouring columns, of each target of its warp: eight targets (half of a bundle) with a strip of 16
// columns, the sixteen targets of a bundle otherwise. The 32 strips of a warp form a *tile*: they lie side by side,
// then below each other, then in further images. The warps of a block hold the same tile of different targets, so that
// each staged element serves all of them.
#pragma once

#include <cstdint>

#include "../core/unit.h"
#include "conv.h"

namespace sparsegan::cuda {

inline constexpr int kWarps = 4;  // per block
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kSlots = static_cast<int>(kBundle);

// A thread has at most 128 sums. With those, a strip of 16 columns leaves registers for eight targets.
__host__ __device__ constexpr int slots_of(int strip) { return strip == 16 ? kSlots / 2 : kSlots; }
// Blocks per multiprocessor at a time, by the registers of the tiled kernels.
constexpr int blocks_of(int strip) { return strip == 4 ? 4 : 3; }
inline constexpr int kReach = static_cast<int>(kWindow);

// Division by a number that is known only at the launch. Exact if the product of both operands is below 2^32.
struct Divider {
  unsigned divisor = 1, inverse = 0;
  Divider() = default;
  explicit Divider(int64_t d)
      : divisor(static_cast<unsigned>(d)), inverse(static_cast<unsigned>(((uint64_t{1} << 32) + d - 1) / d)) {}
  __host__ __device__ int divide(int n) const {
    return divisor == 1 ? n : static_cast<int>((static_cast<uint64_t>(static_cast<unsigned>(n)) * inverse) >> 32);
  }
};

// The arrays of a device plan (core/device_plan.h), in device memory.
struct Plan {
  const int* bands = nullptr;  // per band: row start, row phase, column start, column phase
  const int* first = nullptr;
  const unsigned* codes = nullptr;
  const int* value_index = nullptr;
  const int* starts = nullptr;
  const int* units = nullptr;   // in the order of starts
  const int* places = nullptr;  // null: the identity
  int taps = 0;
};

// The shape of a tensor that holds targets or sources.
struct Planes {
  int channels = 0, height = 0, width = 0;
  bool fours = false;  // four neighbouring columns may be accessed at once
  __host__ __device__ int64_t plane() const { return static_cast<int64_t>(height) * width; }
};

struct Tiling {
  Plan plan;
  Planes x, y;
  int images = 0;
  int groups = 1, group_sources = 0, group_targets = 0, group_bundles = 0;
  int phases_h = 1, phases_w = 1;  // targets per channel
  int rows = 0, columns = 0;       // of a target

  // Tiled kernels
  unsigned zero = 0;         // always 0, but nvcc does not know it
  int strip = 8;             // 16, 8 or 4 columns
  int log_w = 0, log_h = 0;  // base-2 logarithms of the lanes along columns and rows; the others are along images
  int tiles_w = 0, tiles_h = 0, tiles = 0;
  int target_blocks = 0;  // blocks per group: kWarps x slots_of(strip) targets each
  int slabs = 0;          // per bundle
  int bands = 1;          // per channel
  int row_step = 1, row_spread = 1, column_step = 1, column_spread = 1;
  // A slab in shared memory has `slab_rows` rows for each image of the tile. A row consists of *fours*: groups of four
  // neighbouring columns. Strip l reads the fours kStride * l + m for m = 0, 1, ... Four k is stored at place
  // (k % kStride) * stride_fours + k / kStride. Neighbouring lanes then read neighbouring fours, which are in different
  // banks.
  int slab_rows = 0, row_fours = 0, segment_fours = 0, stride_fours = 0;
  int row_pitch = 0, image_pitch = 0, slab_size = 0;  // elements
  int row_limit = 0;                                  // elements: the largest valid offset of a tap's row in the stage
  Divider by_fours, by_rows;
  int stage_slabs = 0;  // slabs staged at a time
  int parts = 1;        // of the slabs (sparse_conv) or the tiles (wgrad); their partial sums are added afterwards
  int slices = 1;       // wgrad: of the slabs; each tap lies in one slice

  // Kernels for small maps
  bool small = false;
  int log_pixels = 0;   // sparse_conv: base-2 logarithm of the lanes that hold different pixels; the others: taps
  int lane_pixels = 1;  // sparse_conv: pixels per lane
  int ways = 1;         // sparse_conv: warps per target
  UnitDecoder<unsigned> units;
  int stride_h = 1, stride_w = 1, padding_h = 0, padding_w = 0, dilation_h = 1, dilation_w = 1;
};

Tiling sparse_conv_tiling(const ConvCall& call);
Tiling wgrad_tiling(const ConvCall& call);

}  // namespace sparsegan::cuda
