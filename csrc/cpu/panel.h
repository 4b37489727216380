// Pack and unpack: between an NCHW tensor and a panel, where each vector lane holds another tile.
//
// A panel row is staged lane by lane (contiguous reads, conversion, zero padding, every phase stride) and then transposed in
// registers, so that neither side is touched with a stride of single elements.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

constexpr int64_t kStageCols = 64;  // columns staged at a time

struct LaneTile {
  int64_t image, row, col;  // row, col: first element of the tile in its phase plane
};

SPARSEGAN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SPARSEGAN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The tiles of a group; returns how many lanes are in use.
template <int L>
SPARSEGAN_INLINE int64_t lane_tiles(const Tiling& t, int64_t group, LaneTile (&out)[L]) {
  const int64_t first = group * L, used = smaller(L, t.tiles() - first);
  for (int64_t lane = 0; lane < used; ++lane) {
    const int64_t i = first + lane, in_image = i % (t.tiles_h * t.tiles_w);
    out[lane] = {i / (t.tiles_h * t.tiles_w), in_image / t.tiles_w * t.tile_h, in_image % t.tiles_w * t.tile_w};
  }
  return used;
}

// One row of a phase plane as seen by one lane: elements base[col * stride], valid for panel columns [begin, end).
struct RowSpan {
  int64_t base, begin, end;
};

// `row` and `col`: panel coordinates relative to the plane. Empty span where the row is outside the tensor.
SPARSEGAN_INLINE RowSpan row_span(const Frame& f, const LaneTile& tile, int64_t channel, int64_t phase_h, int64_t phase_w, int64_t row,
                                  int64_t col_end) {
  const int64_t h = (tile.row + f.first_h + row) * f.phases_h + phase_h;
  const int64_t origin = (tile.col + f.first_w) * f.phases_w + phase_w;  // the tensor column of panel column 0
  if (h < 0 || h >= f.height) return {0, 0, 0};
  const int64_t before = origin < 0 ? (-origin + f.phases_w - 1) / f.phases_w : 0;
  const int64_t inside = origin < f.width ? (f.width - origin + f.phases_w - 1) / f.phases_w : 0;
  const int64_t end = smaller(inside, col_end);
  return {((tile.image * f.channels + channel) * f.height + h) * f.width + origin, smaller(before, end), end};
}

template <class IO, class T, int L>
void pack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last, const void* tensor, void* panel) {
  const IO* x = static_cast<const IO*>(tensor);
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(tiling, group, tile);
  alignas(64) T stage[L][kStageCols] = {};  // lanes without a tile stay zero
  const int64_t phases = f.phases_h * f.phases_w;
  for (int64_t plane = first; plane < last; ++plane) {
    const int64_t channel = plane / phases, phase_h = plane % phases / f.phases_w, phase_w = plane % f.phases_w;
    for (int64_t row = 0; row < f.rows; ++row) {
      T* out = static_cast<T*>(panel) + ((plane * f.rows + row) * f.cols) * L;
      for (int64_t col0 = 0; col0 < f.cols; col0 += kStageCols) {
        const int64_t cols = smaller(kStageCols, f.cols - col0);
        for (int64_t lane = 0; lane < used; ++lane) {
          const RowSpan span = row_span(f, tile[lane], channel, phase_h, phase_w, row, col0 + cols);
          const int64_t begin = larger(span.begin, col0), end = larger(span.end, begin);
          T* to = stage[lane] - col0;
          for (int64_t c = col0; c < smaller(begin, col0 + cols); ++c) to[c] = 0;
          if (f.phases_w == 1) {
            for (int64_t c = begin; c < end; ++c) to[c] = widen(x[span.base + c]);
          } else {
            for (int64_t c = begin; c < end; ++c) to[c] = widen(x[span.base + c * f.phases_w]);
          }
          for (int64_t c = end; c < col0 + cols; ++c) to[c] = 0;
        }
        for (int64_t c = 0; c < cols; c += L) {
          Vec<T, L> v[L];
          for (int i = 0; i < L; ++i) v[i] = load<T, L>(&stage[i][c]);
          transpose<T, L>(v);
          const int64_t n = smaller(L, cols - c);
          for (int64_t i = 0; i < n; ++i) store<T, L>(out + (col0 + c + i) * L, v[i]);
        }
      }
    }
  }
}

template <class IO, class T, int L>
void unpack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last, const void* panel, void* tensor) {
  IO* y = static_cast<IO*>(tensor);
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(tiling, group, tile);
  alignas(64) T stage[L][kStageCols];
  const int64_t phases = f.phases_h * f.phases_w;
  for (int64_t plane = first; plane < last; ++plane) {
    const int64_t channel = plane / phases, phase_h = plane % phases / f.phases_w, phase_w = plane % f.phases_w;
    for (int64_t row = 0; row < f.rows; ++row) {
      const T* in = static_cast<const T*>(panel) + ((plane * f.rows + row) * f.cols) * L;
      for (int64_t col0 = 0; col0 < f.cols; col0 += kStageCols) {
        const int64_t cols = smaller(kStageCols, f.cols - col0);
        for (int64_t c = 0; c < cols; c += L) {
          Vec<T, L> v[L] = {};
          const int64_t n = smaller(L, cols - c);
          for (int64_t i = 0; i < n; ++i) v[i] = load<T, L>(in + (col0 + c + i) * L);
          transpose<T, L>(v);
          for (int i = 0; i < L; ++i) store<T, L>(&stage[i][c], v[i]);
        }
        for (int64_t lane = 0; lane < used; ++lane) {
          const RowSpan span = row_span(f, tile[lane], channel, phase_h, phase_w, row, col0 + cols);
          const T* from = stage[lane] - col0;
          const int64_t begin = larger(span.begin, col0);
          if (f.phases_w == 1) {
            for (int64_t c = begin; c < span.end; ++c) y[span.base + c] = Narrow<IO>::from(from[c]);
          } else {
            for (int64_t c = begin; c < span.end; ++c) y[span.base + c * f.phases_w] = Narrow<IO>::from(from[c]);
          }
        }
      }
    }
  }
}

template <class IO, class T>
void order_values(const int32_t* order, int64_t first, int64_t last, const void* values, void* out) {
  for (int64_t t = first; t < last; ++t) static_cast<T*>(out)[t] = widen(static_cast<const IO*>(values)[order[t]]);
}

template <class IO, class T>
void scatter_values(const int32_t* order, int64_t first, int64_t last, const void* sums, void* out) {
  for (int64_t t = first; t < last; ++t) static_cast<IO*>(out)[order[t]] = Narrow<IO>::from(static_cast<const T*>(sums)[t]);
}

}  // namespace sparsegan::SPARSEGAN_ISA
