// The common parts of the tiled kernels: the places of blocks and lanes, staging of slabs, reading of segments, and the
// tensor elements that belong to a thread's strips. Two template parameters appear throughout: `Strip` is the number of
// columns of a strip, `Step` the number of source columns from one of these columns to the next.
#pragma once

#include "async.h"
#include "number.h"
#include "tiling.h"

namespace sparsegan::cuda {

// Calls body(Case<which>()) for a `which` from 0 to 63 that is the same in all lanes of a warp. Slot and column are
// compile-time constants in `body`, so that they can select registers. nvcc's option -jtd makes the switch one jump
// through a table.
template <int kCase>
struct Case {
  static constexpr int slot = kCase / kReach, column = kCase % kReach;
};
#define SPARSEGAN_CASE(k) \
  case k:                 \
    body(Case<k>());      \
    break;
#define SPARSEGAN_CASES(k) \
  SPARSEGAN_CASE(k)        \
  SPARSEGAN_CASE(k + 1)    \
  SPARSEGAN_CASE(k + 2)    \
  SPARSEGAN_CASE(k + 3)    \
  SPARSEGAN_CASE(k + 4)    \
  SPARSEGAN_CASE(k + 5)    \
  SPARSEGAN_CASE(k + 6)    \
  SPARSEGAN_CASE(k + 7)
template <class Body>
__device__ __forceinline__ void dispatch(unsigned which, const Body& body) {
  static_assert(kSlots * kReach == 64);
  switch (which) {
    SPARSEGAN_CASES(0)
    SPARSEGAN_CASES(8)
    SPARSEGAN_CASES(16)
    SPARSEGAN_CASES(24)
    SPARSEGAN_CASES(32)
    SPARSEGAN_CASES(40)
    SPARSEGAN_CASES(48)
    SPARSEGAN_CASES(56)
    default:
      break;
  }
}
#undef SPARSEGAN_CASES
#undef SPARSEGAN_CASE

// A tap in the form that the tiled kernels run. Each lane of a warp prepares one tap, and all lanes run it.
struct TapStep {
  int row;         // elements from the start of the stage to the tap's source row; below 0: same row as the tap before
  unsigned which;  // slot * kReach + column

  // Decodes `code` of a device plan. A bad code gives a wrong row, but never a row outside the stage. `slab` is the
  // first slab that the block stages. All lanes must call this function together, with the taps in the order of the
  // lanes.
  __device__ __forceinline__ static TapStep of(const Tiling& t, unsigned code, int slab) {
    constexpr unsigned kCases = kSlots * kReach;
    const unsigned before = __shfl_up_sync(~0u, code, 1);
    if (threadIdx.x % 32 > 0 && before / kCases == code / kCases) return {-1, code % kCases};
    const int staged = static_cast<int>(code / (kCases * kReach)) - slab;
    const int in_stage = staged - t.by_stage.divide(staged) * t.stage_slabs;
    const unsigned offset = in_stage * t.slab_size + code / kCases % kReach * t.row_pitch;
    return {static_cast<int>(min(offset, static_cast<unsigned>(t.row_limit))), code % kCases};
  }
};

// The place of a tile: its first image, row and column.
struct Origin {
  int image, row, column;  // within a target's plane

  template <int Strip>
  __device__ static Origin of(const Tiling& t, int tile) {
    const int across = tile / t.tiles_w, n = across / t.tiles_h;
    return {n << (5 - t.log_w - t.log_h), (across - n * t.tiles_h) << t.log_h,
            ((tile - across * t.tiles_w) << t.log_w) * Strip};
  }
};

// The place of a lane's strip in its tile.
struct Lane {
  int image, row, strip;

  __device__ static Lane of(const Tiling& t, int lane) {
    return {lane >> (t.log_w + t.log_h), (lane >> t.log_w) & ((1 << t.log_h) - 1), lane & ((1 << t.log_w) - 1)};
  }
  // Elements from the start of a slab to the start of the strip's first segment.
  __device__ int offset(const Tiling& t) const {
    return image * t.image_pitch + row * t.row_step * t.row_pitch + 4 * strip;
  }
};

// The group and bundle of a warp. Some warps of a group's last block have no bundle.
struct Bundle {
  int group, index;  // index: within the group
  bool there;

  __device__ static Bundle of(const Tiling& t, int block, int warp) {
    const int group = block / t.bundle_blocks;
    const int index = (block - group * t.bundle_blocks) * kWarps + warp;
    return {group, index, index < t.group_bundles};
  }
  __device__ const int* first(const Tiling& t) const {
    return t.plan.first + (static_cast<int64_t>(group) * t.group_bundles + index) * t.slabs;
  }
  // The first tap of a slab, clamped to the valid range: plans are not trusted.
  __device__ int tap(const Tiling& t, int slab) const { return there ? min(max(first(t)[slab], 0), t.plan.taps) : 0; }
};

// Copies `count` slabs, from `slab` on, to shared memory. Elements outside the images become zeros. All threads of the
// block copy together.
template <class T, int Strip, int Step>
__device__ __forceinline__ void stage(const Tiling& t, const T* x, T* shared, const Origin& origin, int group, int slab,
                                      int count) {
  constexpr int kStride = Strip * Step / 4;
  const int bands = t.bands;
  const int items = t.slab_rows * t.row_fours * (32 >> (t.log_w + t.log_h));
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += kThreads) {
    const int line = t.by_fours.divide(item), four = item - line * t.row_fours;
    const int image = t.by_rows.divide(line), line_row = line - image * t.slab_rows;
    T* to = shared + image * t.image_pitch + line_row * t.row_pitch +
            4 * (four % kStride * t.stride_fours + four / kStride);
    const T* from = x;
    unsigned columns = 0;  // from the first of the four to the end of its row; 0: outside the image
#pragma unroll 1
    for (int s = 0; s < count; ++s, to += t.slab_size) {
      if (s == 0 || bands > 1) {
        const int channel = (slab + s) / bands;
        const int* const band = t.plan.bands + 4 * (slab + s - channel * bands);
        // Unsigned: the numbers of a bad plan may wrap around, but a number below the size is inside the tensor.
        const unsigned row =
            static_cast<unsigned>(origin.row * t.row_step + line_row + band[0]) * t.row_spread + band[1];
        const unsigned column =
            static_cast<unsigned>(origin.column * Step + 4 * four + band[2]) * t.column_spread + band[3];
        const bool there = origin.image + image < t.images && row < static_cast<unsigned>(t.x.height);
        columns = there && column < static_cast<unsigned>(t.x.width) ? t.x.width - column : 0;
        const int64_t plane = static_cast<int64_t>(origin.image + image) * t.x.channels +
                              static_cast<int64_t>(group) * t.group_sources + channel;
        from = x + (plane * t.x.height + row) * t.x.width + (t.x.fours ? column & ~3u : column);
      } else {
        from += t.x.plane();
      }
      if (t.x.fours) {
        copy_async<4 * sizeof(T)>(to, columns > 0 ? from : x, columns > 0);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const unsigned step = i * t.column_spread;
          const bool valid = step < columns;
          if constexpr (sizeof(T) == 4) {
            copy_async<4>(to + i, valid ? from + step : x, valid);
          } else {  // cp.async copies at least 4 bytes
            to[i] = valid ? from[step] : from_float<T>(0);
          }
        }
      }
    }
  }
}

// The source columns that the taps of one row read for a strip, in registers.
template <class T, int Strip, int Step>
class Segment {
 public:
  // `row`: the start of the lane's strip in a staged row.
  __device__ __forceinline__ void load(const Tiling& t, const T* row) {
#pragma unroll
    for (int m = 0; m < kFours; ++m) {
      // Taps reach over at most kReach columns. If they reach over fewer, only the last two fours may be unneeded.
      if (m < kFours - 2 || m < t.segment_fours) {
        load_four(row + 4 * (m % kStride * t.stride_fours + m / kStride), fours_[m]);
      }
    }
  }
  // The element for column `i` of the strip and a tap's column `column`. Unrolling makes both compile-time constants.
  __device__ __forceinline__ float operator()(int i, int column) const {
    return fours_[(i * Step + column) / 4][(i * Step + column) % 4];
  }

 private:
  static constexpr int kStride = Strip * Step / 4;
  static constexpr int kFours = ((Strip - 1) * Step + kReach + 3) / 4;
  float fours_[kFours][4] = {};
};

// The tensor elements that belong to a bundle's strips, one slot after the other. The elements of a strip lie in one
// row, `phases_w` columns apart.
class Rows {
 public:
  template <int Strip>
  __device__ static Rows of(const Tiling& t, const Bundle& bundle, const Origin& origin, const Lane& lane) {
    Rows rows;
    const int phases = t.phases_h * t.phases_w, target = bundle.index * kSlots, in_group = target / phases;
    rows.left_ = bundle.there && origin.image + lane.image < t.images ? t.group_targets - target : 0;
    rows.phase_h_ = (target - in_group * phases) / t.phases_w;
    rows.phase_w_ = target - in_group * phases - rows.phase_h_ * t.phases_w;
    rows.channel_ = bundle.group * (t.group_targets / phases) + in_group;
    rows.plane_ = (static_cast<int64_t>(origin.image + lane.image) * t.y.channels + rows.channel_) * t.y.plane();
    rows.row_ = (origin.row + lane.row) * t.phases_h;
    rows.column_ = (origin.column + lane.strip * Strip) * t.phases_w;
    return rows;
  }
  __device__ __forceinline__ bool there(const Tiling& t) const { return left_ > 0 && row_ + phase_h_ < t.y.height; }
  __device__ __forceinline__ int channel() const { return channel_; }
  __device__ __forceinline__ int column() const { return column_ + phase_w_; }
  // The offset of the row's first element in the tensor.
  __device__ __forceinline__ int64_t offset(const Tiling& t) const {
    return plane_ + static_cast<int64_t>(row_ + phase_h_) * t.y.width;
  }
  // Moves to the next slot.
  __device__ __forceinline__ void advance(const Tiling& t) {
    --left_;
    if (++phase_w_ < t.phases_w) return;
    phase_w_ = 0;
    if (++phase_h_ < t.phases_h) return;
    phase_h_ = 0;
    ++channel_;
    plane_ += t.y.plane();
  }

 private:
  int left_;  // targets of the group from this slot on
  int channel_, phase_h_, phase_w_, row_, column_;
  int64_t plane_;
};

}  // namespace sparsegan::cuda
