// The places of the elements of an NCHW tensor in a panel, for pack.h and unpack.h. Each vector lane of a panel holds
// one tile.
//
// L columns of L tiles are L row vectors of the tensor, which are transposed in registers, so that neither tensor nor
// panel is accessed element by element. The places of the tiles are computed once for all channels: RowTable has the
// start of each row per lane, Columns has the lanes that reach over the tensor's edge. Beyond the edge lies zero or a
// copy of an element, as Padding says. A phase is every `stride`-th row and column.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

// Returns the index in [0, n) of the element that the padding puts at index i, or -1 for a zero. An index that lies
// further out than a padding may reach gives an arbitrary element or -1, because no output needs that panel element.
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
  int64_t image;        // number of the tile's image
  int64_t image_start;  // offset of the image's first element in the tensor
  int64_t row, col;     // place of panel row 0 and column 0 in a phase's grid; may be negative
};

// Writes the tiles of a group to `out`. Returns how many lanes have a tile.
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

// Rows, and runs of L columns, per table: few enough for the tables to stay in the cache.
constexpr int64_t kTableRows = 32, kTableColumns = 8;

// The starts of some panel rows of one row phase, per lane, as offsets in channel 0 of the tensor.
template <int L>
struct RowTable {
  int64_t start[kTableRows][L];  // -1: the row is outside the tensor
  bool whole[kTableRows];        // the row is inside the tensor in every lane
  int64_t least = 0, most = 0;   // all starts that are not -1 lie in [least, most)

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
    return element < 0 ? -1 : tile.image_start + element * f.width;
  }
};

// L neighbouring elements of a tensor row, and their places in a panel row. The elements belong to the column phases in
// turn.
template <class T, int L>
struct Columns {
  using Int = typename IntOf<sizeof(T)>::type;

  int64_t count;          // elements that the panel has, at most L
  int64_t place[L];       // per element: offset in the panel from the start of the row in its first column phase
  int64_t column[L];      // per lane: column of the first element in the tensor; may be outside
  int64_t least, most;    // smallest and largest of `column`
  bool whole;             // all elements of all lanes are inside the tensor
  bool lane_whole[L];     // per lane: all elements are inside the tensor
  Vec<Int, L> inside[L];  // per lane: mask of the elements that are inside the tensor
  int64_t elements[L];    // per lane: elements before the right edge of the tensor
  int32_t from[L][L];     // [element][lane]: the tensor's column to read; -1 for a zero

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

// Up to kTableColumns runs of L columns, from column `first` on.
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
