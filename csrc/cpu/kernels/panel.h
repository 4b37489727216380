// Where the elements of an NCHW tensor lie in a panel, whose vector lanes hold a tile each; pack.h and unpack.h use it.
//
// L columns of L tiles are read as L row vectors and transposed in registers, so that neither side is touched element
// by element. Where a tile lies is worked out once for all channels: a table of the lanes' row starts, and for L
// columns which lanes reach over the tensor's edge. Beyond the edge lies zero or another element, as Padding says; a
// phase is every `stride`-th row and column.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

// The element of [0, n) that stands at index i; -1 for a zero. Only panel elements that no output needs are further out
// than a padding may reach: they get any.
SPARSEGAN_INLINE int64_t padded(int64_t i, int64_t n, Padding padding) {
  if (i >= 0 && i < n) return i;
  switch (padding) {
    case Padding::zeros:
      return -1;
    case Padding::reflect:
      return clamp(i < 0 ? -i : 2 * (n - 1) - i, 0, n - 1);
    case Padding::replicate:
      return clamp(i, 0, n - 1);
    case Padding::circular:
      return clamp(i < 0 ? i + n : i - n, 0, n - 1);
  }
  return -1;
}

// The tile that a lane holds.
struct LaneTile {
  int64_t number;    // of its image
  int64_t image;     // first element of its image
  int64_t row, col;  // panel row 0 and column 0 in a phase's grid; may be negative
};

// The tiles of a group; returns how many lanes have one.
template <int L>
SPARSEGAN_INLINE int64_t lane_tiles(const Frame& f, const Tiling& t, int64_t group, LaneTile (&out)[L]) {
  const int64_t used = smaller(L, t.tiles() - group * L);
  for (int64_t lane = 0; lane < used; ++lane) {
    const int64_t tile = group * L + lane, image = tile / (t.tiles_h * t.tiles_w),
                  place = tile % (t.tiles_h * t.tiles_w);
    out[lane] = {image, image * f.image_stride, place / t.tiles_w * t.tile_h + f.first_h,
                 place % t.tiles_w * t.tile_w + f.first_w};
  }
  return used;
}

// Rows, and runs of L columns, that are tabled at once: few enough to stay near the core.
constexpr int64_t kTableRows = 32, kTableColumns = 8;

// Where some panel rows of a row phase start in channel 0, per lane.
template <int L>
struct RowTable {
  int64_t start[kTableRows][L];  // -1: outside
  bool whole[kTableRows];        // every lane is inside
  int64_t least = 0, most = 0;   // of the starts inside

  SPARSEGAN_INLINE RowTable(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t phase, int64_t first,
                            int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      whole[r] = true;
      for (int64_t i = 0; i < L; ++i) {
        start[r][i] = i < used ? row_start(f, tile[i], phase, first + r) : -1;
        if (start[r][i] < 0) {
          whole[r] = false;
        } else {
          least = most == 0 ? start[r][i] : smaller(least, start[r][i]);
          most = larger(most, start[r][i] + 1);
        }
      }
    }
  }

  static SPARSEGAN_INLINE int64_t row_start(const Frame& f, const LaneTile& tile, int64_t phase, int64_t row) {
    const int64_t grid_row = tile.row + row;
    if (f.images_as_rows) {
      const bool inside = grid_row >= 0 && grid_row < f.images_as_rows && phase < f.height;
      return inside ? grid_row * f.image_stride + phase * f.width : -1;
    }
    const int64_t element = padded(grid_row * f.phases_h + phase - f.before_h, f.height, f.padding);
    return element < 0 ? -1 : tile.image + element * f.width;
  }
};

// L neighbouring elements of a tensor row, and where they lie in a panel row: column phases take turns.
template <class T, int L>
struct Columns {
  using Int = typename IntOf<sizeof(T)>::type;

  int64_t count;          // of the elements that the panel has, at most L
  int64_t place[L];       // panel elements from the row's start in its first column phase, per element
  int64_t column[L];      // element column where each lane starts
  int64_t least, most;    // of these
  bool whole;             // every lane is inside the tensor
  bool lane_whole[L];     // this lane is
  Vec<Int, L> inside[L];  // which of its elements are
  int64_t elements[L];    // how many of the first elements the tensor has
  int32_t from[L][L];     // [element][lane]: the tensor's column that stands there; -1 for a zero

  SPARSEGAN_INLINE void set(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t first) {
    Vec<Int, L> number;
    for (int i = 0; i < L; ++i) number[i] = i;
    count = smaller(L, f.cols * f.phases_w - first);
    for (int64_t e = 0; e < count; ++e) {
      place[e] = (first + e) % f.phases_w * f.plane + (first + e) / f.phases_w * L;
    }
    whole = true;
    for (int64_t i = 0; i < L; ++i) {
      column[i] = tile[i < used ? i : 0].col * f.phases_w - f.before_w + first;
      least = i == 0 ? column[i] : smaller(least, column[i]);
      most = i == 0 ? column[i] : larger(most, column[i]);
      lane_whole[i] = column[i] >= 0 && column[i] + count <= f.width;
      whole &= lane_whole[i];
      const int64_t begin = clamp(-column[i], 0, L), end = clamp(f.width - column[i], 0, L);
      inside[i] = (number >= static_cast<Int>(begin)) & (number < static_cast<Int>(end));
      elements[i] = clamp(f.width - column[i], 0, count);
      for (int64_t e = 0; e < L; ++e) from[e][i] = static_cast<int32_t>(padded(column[i] + e, f.width, f.padding));
    }
  }
};

// Runs of columns from one on.
template <class T, int L>
struct ColumnTable {
  int64_t count;
  Columns<T, L> at[kTableColumns];

  SPARSEGAN_INLINE void set(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t first) {
    const int64_t columns = f.cols * f.phases_w - first;
    count = smaller((columns + L - 1) / L, kTableColumns);
    for (int64_t k = 0; k < count; ++k) at[k].set(f, tile, used, first + k * L);
  }
};

}  // namespace sparsegan::SPARSEGAN_ISA
