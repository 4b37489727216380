// The common parts of the tiled kernels: the places of blocks and lanes, staging of slabs, reading of segments, and the
// tensor elements that belong to a thread's strips. Two template parameters appear throughout: `Strip` is the number of
// columns of a strip, `Step` the number of source columns from one of these columns to the next.
#pragma once

#include "async.h"
#include "number.h"
#include "tiling.h"

namespace sparsegan::cuda {

// Returns `number`, which is the same in all lanes of a warp, in a way that nvcc can see. nvcc then keeps it in a
// register of the warp, and knows that a jump that depends on it does not part the lanes. All lanes call this function
// together.
__device__ __forceinline__ int uniform(int number) { return __reduce_max_sync(~0u, number); }

// The place of a tile: its first image, row and column.
struct Origin {
  int image, row, column;  // within a target's plane

  template <int Strip>
  __device__ static Origin of(const Tiling& t, int tile) {
    const int across = tile / t.tiles_w, n = across / t.tiles_h;
    return {uniform(n << (5 - t.log_w - t.log_h)), uniform((across - n * t.tiles_h) << t.log_h),
            uniform(((tile - across * t.tiles_w) << t.log_w) * Strip)};
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

// The targets of a warp: a bundle or, with eight slots, one half of a bundle. Some warps of a group's last block have
// no target.
template <int Slots>
struct Targets {
  int group, index;  // index: within the group, in units of Slots targets
  bool there;

  __device__ static Targets of(const Tiling& t, int block, int warp) {
    const int group = uniform(block / t.target_blocks);
    const int index = (block - group * t.target_blocks) * kWarps + warp;
    return {group, index, index * Slots < t.group_targets};
  }
  // The first tap of a slab in the bundle, clamped to the valid range: plans are not trusted.
  __device__ int tap(const Tiling& t, int slab) const {
    if (!there) return 0;
    const int bundle = group * t.group_bundles + index / (kSlots / Slots);
    return min(max(t.plan.first[static_cast<int64_t>(bundle) * t.slabs + slab], 0), t.plan.taps);
  }
  // Whether a tap of the bundle is one of this warp's.
  __device__ bool keep(unsigned code) const {
    constexpr unsigned kParts = kSlots / Slots;
    return kParts == 1 || code / Slots % kParts == index % kParts;
  }
};

// Copies `count` slabs, from `slab` on, to shared memory. Elements outside the images become zeros. All threads of the
// block copy together.
template <class T, int Strip, int Step>
__device__ __forceinline__ void stage(const Tiling& t, const T* x, T* shared, const Origin& origin, int group, int slab,
                                      int count) {
  constexpr int kStride = Strip * Step / 4;
  const int items = t.slab_rows * t.row_fours * (32 >> (t.log_w + t.log_h));
#pragma unroll 1
  for (int item = threadIdx.x; item < items; item += kThreads) {
    const int line = t.by_fours.divide(item), four = item - line * t.row_fours;
    const int image = t.by_rows.divide(line), line_row = line - image * t.slab_rows;
    T* to = shared + image * t.image_pitch + line_row * t.row_pitch +
            4 * (four % kStride * t.stride_fours + four / kStride);
    // Sets `from`, the four in slab s, and `columns`, from its first column to the end of its row; 0: outside the
    // image.
    const T* from = x;
    unsigned columns = 0;
    const auto find = [&](int s) {
      const int channel = (slab + s) / t.bands;
      const int* const band = t.plan.bands + 4 * (slab + s - channel * t.bands);
      // Unsigned: the numbers of a bad plan may wrap around, but a number below the size is inside the tensor.
      const unsigned row = static_cast<unsigned>(origin.row * t.row_step + line_row + band[0]) * t.row_spread + band[1];
      const unsigned column =
          static_cast<unsigned>(origin.column * Step + 4 * four + band[2]) * t.column_spread + band[3];
      const bool there = origin.image + image < t.images && row < static_cast<unsigned>(t.x.height);
      columns = there && column < static_cast<unsigned>(t.x.width) ? t.x.width - column : 0;
      const int64_t plane = static_cast<int64_t>(origin.image + image) * t.x.channels +
                            static_cast<int64_t>(group) * t.group_sources + channel;
      from = x + (plane * t.x.height + row) * t.x.width + (t.x.fours ? column & ~3u : column);
    };
    if (t.x.fours && t.bands == 1) {  // the usual case, with few instructions per copy
      find(0);
      const bool valid = columns > 0;
      const int64_t plane = valid ? t.x.plane() : 0;
      from = valid ? from : x;
#pragma unroll 4
      for (int s = 0; s < count; ++s, to += t.slab_size, from += plane) copy_async<4 * sizeof(T)>(to, from, valid);
      continue;
    }
#pragma unroll 1
    for (int s = 0; s < count; ++s, to += t.slab_size) {
      find(s);
      if (t.x.fours) {
        copy_async<4 * sizeof(T)>(to, columns > 0 ? from : x, columns > 0);
        continue;
      }
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

// The tensor elements that belong to a warp's strips, one slot after the other. The elements of a strip lie in one
// row, `phases_w` columns apart.
class Rows {
 public:
  template <int Strip, int Slots>
  __device__ static Rows of(const Tiling& t, const Targets<Slots>& targets, const Origin& origin, const Lane& lane) {
    Rows rows;
    const int phases = t.phases_h * t.phases_w, target = targets.index * Slots, in_group = target / phases;
    rows.left_ = targets.there && origin.image + lane.image < t.images ? t.group_targets - target : 0;
    rows.phase_h_ = (target - in_group * phases) / t.phases_w;
    rows.phase_w_ = target - in_group * phases - rows.phase_h_ * t.phases_w;
    rows.channel_ = targets.group * (t.group_targets / phases) + in_group;
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
