// What the tiled kernels share: where a block and its lanes are, staging slabs, reading segments, and the elements that
// a thread's strips stand for. Strip: columns of a strip. Step: source columns from one of them to the next.
#pragma once

#include "async.h"
#include "number.h"
#include "tiling.h"

namespace sparsegan::cuda {

// body(Case<which>()) for a warp-uniform `which` from 0 to 63: one jump through a table (nvcc's -jtd) to code whose
// registers are named by slot and column.
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

// A tap as a warp's lanes prepare it for all of them to run.
struct TapStep {
  int row;         // elements from the stage's start to its source row; below 0: the row of the tap before
  unsigned which;  // slot and column

  // Of the tap that `code` stands for, whatever it is within the stage; `slab` is the first that the block stages.
  // Every lane calls this, taps in the order of lanes.
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

// Where a tile starts.
struct Origin {
  int image, row, column;  // of the targets

  template <int Strip>
  __device__ static Origin of(const Tiling& t, int tile) {
    const int across = tile / t.tiles_w, n = across / t.tiles_h;
    return {n << (5 - t.log_w - t.log_h), (across - n * t.tiles_h) << t.log_h,
            ((tile - across * t.tiles_w) << t.log_w) * Strip};
  }
};

// Where a lane's strip is in its tile.
struct Lane {
  int image, row, strip;

  __device__ static Lane of(const Tiling& t, int lane) {
    return {lane >> (t.log_w + t.log_h), (lane >> t.log_w) & ((1 << t.log_h) - 1), lane & ((1 << t.log_w) - 1)};
  }
  // Elements from a slab's start to where the strip's first segment starts.
  __device__ int offset(const Tiling& t) const {
    return image * t.image_pitch + row * t.row_step * t.row_pitch + 4 * strip;
  }
};

// The group and bundle of a warp; some warps of a group's last block have none.
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
  // The first tap of a slab, whatever the plan says a valid one.
  __device__ int tap(const Tiling& t, int slab) const { return there ? min(max(first(t)[slab], 0), t.plan.taps) : 0; }
};

// Copies `count` slabs from `slab` on to shared memory, zeros where they leave the images; the block's threads
// together.
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
    unsigned columns = 0;  // from the first of the four to the end of its row; 0: outside
#pragma unroll 1
    for (int s = 0; s < count; ++s, to += t.slab_size) {
      if (s == 0 || bands > 1) {
        const int channel = (slab + s) / bands;
        const int* const band = t.plan.bands + 4 * (slab + s - channel * bands);
        // Unsigned: what a bad plan says may wrap around, and what is below the size is within the tensor.
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
          } else {  // below what cp.async copies
            to[i] = valid ? from[step] : from_float<T>(0);
          }
        }
      }
    }
  }
}

// The source columns that a strip's taps on one row read, in registers.
template <class T, int Strip, int Step>
class Segment {
 public:
  // `row`: where the lane's strip starts in it.
  __device__ __forceinline__ void load(const Tiling& t, const T* row) {
#pragma unroll
    for (int m = 0; m < kFours; ++m) {
      // A tap's column is one of eight: the last two fours may lie behind what taps read.
      if (m < kFours - 2 || m < t.segment_fours) {
        load_four(row + 4 * (m % kStride * t.stride_fours + m / kStride), fours_[m]);
      }
    }
  }
  // Element for the strip's column `i` and a tap's column `column`; both compile-time numbers once unrolled.
  __device__ __forceinline__ float operator()(int i, int column) const {
    return fours_[(i * Step + column) / 4][(i * Step + column) % 4];
  }

 private:
  static constexpr int kStride = Strip * Step / 4;
  static constexpr int kFours = ((Strip - 1) * Step + kReach + 3) / 4;
  float fours_[kFours][4] = {};
};

// The elements of a tensor that a bundle's strips stand for, slot by slot: `phases_w` columns apart in one row.
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
  // Of the row's first element in the tensor.
  __device__ __forceinline__ int64_t offset(const Tiling& t) const {
    return plane_ + static_cast<int64_t>(row_ + phase_h_) * t.y.width;
  }
  // On to the next slot.
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
  int left_;  // targets of the group from this one on
  int channel_, phase_h_, phase_w_, row_, column_;
  int64_t plane_;
};

}  // namespace sparsegan::cuda
