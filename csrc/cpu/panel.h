// Pack and unpack: between an NCHW tensor and a panel, where each vector lane holds another tile.
//
// L columns of L tiles are read as L row vectors and transposed in registers, so that neither side is touched element
// by element. Where a tile lies is worked out once for many channels: a table of the lanes' row starts, and for L
// columns which lanes reach over the tensor's edge. What lies beyond it is zero or another element, as Padding says; a
// phase is every `stride`-th row and column.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

SPARSEGAN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SPARSEGAN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
SPARSEGAN_INLINE int64_t clamp(int64_t a, int64_t least, int64_t most) { return smaller(larger(a, least), most); }

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
    out[lane] = {image * f.image_stride, place / t.tiles_w * t.tile_h + f.first_h,
                 place % t.tiles_w * t.tile_w + f.first_w};
  }
  return used;
}

// Rows that are tabled at once, and channels that share a table of columns.
constexpr int64_t kTableRows = 32, kTableChannels = 4;

// Where some panel rows of a row phase start in channel 0, a lane each.
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

// L panel columns from `first` on of Pair column phases together: they are neighbours in the tensor.
template <class T, int L, int Pair>
struct Columns {
  using Int = typename IntOf<sizeof(T)>::type;

  int64_t count;            // of panel columns, at most L
  int64_t column[L];        // element column where each lane starts
  int64_t least, most;      // of these
  bool whole;               // every lane's columns are inside
  bool lane_whole[L];       // this lane's are
  Vec<Int, L> in[Pair][L];  // which of them are

  SPARSEGAN_INLINE Columns(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t first) {
    const auto number = lanes<T, L>([](int i) { return i; });
    count = smaller(L, f.cols - first);
    whole = true;
    for (int64_t i = 0; i < L; ++i) {
      column[i] = (tile[i < used ? i : 0].col + first) * f.phases_w - f.before_w;
      least = i == 0 ? column[i] : smaller(least, column[i]);
      most = i == 0 ? column[i] : larger(most, column[i]);
      // Element column of lane position e, phase k: column + e * Pair + k.
      lane_whole[i] = column[i] >= 0 && column[i] + count * Pair <= f.width;
      whole &= lane_whole[i];
      for (int k = 0; k < Pair; ++k) {
        const int64_t begin = clamp((-column[i] - k + Pair - 1) / Pair, 0, L);
        const int64_t end = clamp((f.width - column[i] - k + Pair - 1) / Pair, 0, L);
        in[k][i] = (number >= static_cast<Int>(begin)) & (number < static_cast<Int>(end));
      }
    }
  }
};

template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> where(Vec<typename IntOf<sizeof(T)>::type, L> in, Vec<T, L> v) {
  return reinterpret_cast<Vec<T, L>>(reinterpret_cast<Vec<typename IntOf<sizeof(T)>::type, L>>(v) & in);
}

// Transposes v and stores its first `count` rows.
template <class T, int L>
SPARSEGAN_INLINE void store_columns(Vec<T, L> (&v)[L], int64_t count, T* out) {
  transpose<T, L>(v);
  if (count == L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) store<T, L>(out + i * L, v[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) store<T, L>(out + i * L, v[i]);
  }
}

// One panel row's L columns of Pair planes, element by element: at the tensor's ends and for wide strides.
template <class IO, class T, int L>
SPARSEGAN_INLINE void pack_elements(const Frame& f, const int64_t (&start)[L], const int64_t (&column)[L],
                                    int64_t count, const IO* channel, T* out) {
  for (int64_t e = 0; e < count; ++e) {
    for (int64_t i = 0; i < L; ++i) {
      const int64_t element = start[i] < 0 ? -1 : padded(column[i] + e * f.phases_w, f.width, f.padding);
      out[e * L + i] = element < 0 ? T(0) : widen(channel[start[i] + element]);
    }
  }
}

// The planes of channels [first, last) of one row phase, in panel rows [row, row + rows).
template <class IO, class T, int L, int Pair>
SPARSEGAN_INLINE void pack_rows(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t phase, int64_t row,
                                int64_t rows, int64_t first, int64_t last, const IO* x, T* panel) {
  const RowTable<L> table(f, tile, used, phase, row, rows);
  const int64_t plane_size = f.plane_size(L);
  for (int64_t c0 = first; c0 < last; c0 += kTableChannels) {
    const int64_t c1 = smaller(c0 + kTableChannels, last);
    for (int64_t col = 0; col < f.cols; col += L) {
      const Columns<T, L, Pair> columns(f, tile, used, col);
      for (int64_t c = c0; c < c1; ++c) {
        const IO* const channel = x + c * f.channel_stride;
        // Whole vectors may be read where they stay inside the tensor, whatever they meet there.
        const bool safe = c * f.channel_stride + table.least + columns.least >= 0 &&
                          c * f.channel_stride + table.most + columns.most + L * Pair <= f.size;
        T* out = panel + (c * f.phases_h + phase) * f.phases_w * plane_size + (row * f.cols + col) * L;
        for (int64_t r = 0; r < rows; ++r, out += f.cols * L) {
          const int64_t (&start)[L] = table.start[r];
          if (!safe) {
            for (int k = 0; k < Pair; ++k) {
              int64_t column[L];
              for (int i = 0; i < L; ++i) column[i] = columns.column[i] + k;
              pack_elements<IO, T, L>(f, start, column, columns.count, channel, out + k * plane_size);
            }
            continue;
          }
          Vec<T, L> v[Pair][L];
          const auto read = [&](int i) __attribute__((always_inline)) {
            const IO* const at = channel + start[i] + columns.column[i];
            v[0][i] = load_wide<IO, T, L>(at);
            if constexpr (Pair == 2) {
              const Vec<T, L> a = v[0][i], b = load_wide<IO, T, L>(at + L);
              v[0][i] = __builtin_shuffle(a, b, lanes<T, L>([](int k) { return 2 * k; }));
              v[1][i] = __builtin_shuffle(a, b, lanes<T, L>([](int k) { return 2 * k + 1; }));
            }
          };
          if (table.whole[r] && columns.whole) {
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) read(i);
          } else if (table.whole[r] && f.padding == Padding::zeros) {
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) {
              read(i);
              for (int k = 0; k < Pair; ++k) v[k][i] = where<T, L>(columns.in[k][i], v[k][i]);
            }
          } else {
            for (int i = 0; i < L; ++i) {
              if (start[i] < 0) {
                for (int k = 0; k < Pair; ++k) v[k][i] = Vec<T, L>{};
                continue;
              }
              read(i);
              if (columns.lane_whole[i]) continue;
              for (int k = 0; k < Pair; ++k) {
                v[k][i] = where<T, L>(columns.in[k][i], v[k][i]);
                if (f.padding == Padding::zeros) continue;
                for (int64_t e = 0; e < columns.count; ++e) {
                  if (columns.in[k][i][e]) continue;
                  v[k][i][e] = widen(channel[start[i] + padded(columns.column[i] + e * Pair + k, f.width, f.padding)]);
                }
              }
            }
          }
#pragma GCC unroll 2
          for (int k = 0; k < Pair; ++k) store_columns<T, L>(v[k], columns.count, out + k * plane_size);
        }
      }
    }
  }
}

// The same for a stride beyond 2 along the rows: nothing to read as vectors.
template <class IO, class T, int L>
SPARSEGAN_INLINE void pack_rows_apart(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t phase,
                                      int64_t row, int64_t rows, int64_t first, int64_t last, const IO* x, T* panel) {
  const RowTable<L> table(f, tile, used, phase, row, rows);
  for (int64_t c = first; c < last; ++c) {
    for (int64_t phase_w = 0; phase_w < f.phases_w; ++phase_w) {
      int64_t column[L];
      for (int64_t i = 0; i < L; ++i) column[i] = i < used ? tile[i].col * f.phases_w + phase_w - f.before_w : 0;
      const int64_t plane = (c * f.phases_h + phase) * f.phases_w + phase_w;
      for (int64_t r = 0; r < rows; ++r) {
        pack_elements<IO, T, L>(f, table.start[r], column, f.cols, x + c * f.channel_stride,
                                panel + ((plane * f.rows + row + r) * f.cols) * L);
      }
    }
  }
}

template <class IO, class T, int L>
void pack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last, const void* tensor,
          void* panel) {
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(f, tiling, group, tile);
  const IO* const x = static_cast<const IO*>(tensor);
  T* const out = static_cast<T*>(panel);
  for (int64_t phase = 0; phase < f.phases_h; ++phase) {
    for (int64_t row = 0; row < f.rows; row += kTableRows) {
      const int64_t rows = smaller(kTableRows, f.rows - row);
      if (f.phases_w == 1) {
        pack_rows<IO, T, L, 1>(f, tile, used, phase, row, rows, first, last, x, out);
      } else if (f.phases_w == 2) {
        pack_rows<IO, T, L, 2>(f, tile, used, phase, row, rows, first, last, x, out);
      } else {
        pack_rows_apart<IO, T, L>(f, tile, used, phase, row, rows, first, last, x, out);
      }
    }
  }
}

// The first n lanes of v to p; fewer than L of them in ever smaller pieces.
template <class IO, class T, int L>
SPARSEGAN_INLINE void store_some(IO* p, Vec<T, L> v, int64_t n) {
  if (n >= L) {
    store_narrow<IO, T, L>(p, v);
    return;
  }
  alignas(64) IO piece[L];
  store_narrow<IO, T, L>(piece, v);
  int64_t done = 0;
  for (; done + 4 <= n; done += 4) __builtin_memcpy(p + done, piece + done, 4 * sizeof(IO));
  for (; done < n; ++done) p[done] = piece[done];
}

// L columns from column c of a panel row, activated, as one vector a tile.
template <class T, int L>
SPARSEGAN_INLINE void load_tiles(const T* in, int64_t count, T slope, Vec<T, L> (&v)[L]) {
  if (count == L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) v[i] = load<T, L>(in + i * L);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) v[i] = i < count ? load<T, L>(in + i * L) : Vec<T, L>{};
  }
  if (slope != T(1)) {
    const Vec<T, L> by = broadcast<T, L>(slope), zero = {};
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const Vec<T, L> scaled = slope == T(0) ? zero : v[i] * by;  // and 0 for minus infinity
      v[i] = v[i] <= zero ? scaled : v[i];                        // NaN stays
    }
  }
  transpose<T, L>(v);
}

// The planes of channels [first, last) of one row phase, in panel rows [row, row + rows).
template <class IO, class T, int L, int Pair>
SPARSEGAN_INLINE void unpack_rows(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t phase, int64_t row,
                                  int64_t rows, int64_t first, int64_t last, const T* panel, T slope, IO* y) {
  const RowTable<L> table(f, tile, used, phase, row, rows);
  const int64_t plane_size = f.plane_size(L);
  const auto low = lanes<T, L>([](int i) { return i % 2 * L + i / 2; });
  const auto high = lanes<T, L>([](int i) { return i % 2 * L + (i + L) / 2; });
  for (int64_t c0 = first; c0 < last; c0 += kTableChannels) {
    const int64_t c1 = smaller(c0 + kTableChannels, last);
    for (int64_t col = 0; col < f.cols; col += L) {
      const Columns<T, L, Pair> columns(f, tile, used, col);
      int64_t elements[L];
      for (int64_t i = 0; i < L; ++i) elements[i] = clamp(f.width - columns.column[i], 0, columns.count * Pair);
      const bool full = columns.whole && columns.count == L;
      for (int64_t c = c0; c < c1; ++c) {
        IO* const channel = y + c * f.channel_stride;
        const T* in = panel + (c * f.phases_h + phase) * f.phases_w * plane_size + (row * f.cols + col) * L;
        for (int64_t r = 0; r < rows; ++r, in += f.cols * L) {
          const int64_t (&start)[L] = table.start[r];
          Vec<T, L> v[Pair][L];
#pragma GCC unroll 2
          for (int k = 0; k < Pair; ++k) load_tiles<T, L>(in + k * plane_size, columns.count, slope, v[k]);
          if (full && table.whole[r]) {
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) {
              IO* const out = channel + start[i] + columns.column[i];
              if constexpr (Pair == 1) {
                store_narrow<IO, T, L>(out, v[0][i]);
              } else {
                store_narrow<IO, T, L>(out, __builtin_shuffle(v[0][i], v[1][i], low));
                store_narrow<IO, T, L>(out + L, __builtin_shuffle(v[0][i], v[1][i], high));
              }
            }
            continue;
          }
          for (int64_t i = 0; i < used; ++i) {
            if (start[i] < 0 || elements[i] == 0) continue;
            IO* const out = channel + start[i] + columns.column[i];
            if constexpr (Pair == 1) {
              store_some<IO, T, L>(out, v[0][i], elements[i]);
            } else {
              store_some<IO, T, L>(out, __builtin_shuffle(v[0][i], v[1][i], low), elements[i]);
              if (elements[i] > L) {
                store_some<IO, T, L>(out + L, __builtin_shuffle(v[0][i], v[1][i], high), elements[i] - L);
              }
            }
          }
        }
      }
    }
  }
}

template <class IO, class T, int L>
SPARSEGAN_INLINE void unpack_rows_apart(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t phase,
                                        int64_t row, int64_t rows, int64_t first, int64_t last, const T* panel, T slope,
                                        IO* y) {
  const RowTable<L> table(f, tile, used, phase, row, rows);
  for (int64_t c = first; c < last; ++c) {
    for (int64_t phase_w = 0; phase_w < f.phases_w; ++phase_w) {
      const T* in = panel + (((c * f.phases_h + phase) * f.phases_w + phase_w) * f.rows + row) * f.cols * L;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t e = 0; e < f.cols; ++e, in += L) {
          for (int64_t i = 0; i < used; ++i) {
            const int64_t element = (tile[i].col + e) * f.phases_w + phase_w;
            if (table.start[r][i] < 0 || element >= f.width) continue;
            const T sum = in[i] <= T(0) && slope != T(1) ? (slope == T(0) ? T(0) : in[i] * slope) : in[i];
            y[c * f.channel_stride + table.start[r][i] + element] = Narrow<IO>::from(sum);
          }
        }
      }
    }
  }
}

template <class IO, class T, int L>
void unpack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last, const void* panel,
            double negative_slope, void* tensor) {
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(f, tiling, group, tile);
  const T* const in = static_cast<const T*>(panel);
  const T slope = static_cast<T>(negative_slope);
  IO* const y = static_cast<IO*>(tensor);
  for (int64_t phase = 0; phase < f.phases_h; ++phase) {
    for (int64_t row = 0; row < f.rows; row += kTableRows) {
      const int64_t rows = smaller(kTableRows, f.rows - row);
      if (f.phases_w == 1) {
        unpack_rows<IO, T, L, 1>(f, tile, used, phase, row, rows, first, last, in, slope, y);
      } else if (f.phases_w == 2) {
        unpack_rows<IO, T, L, 2>(f, tile, used, phase, row, rows, first, last, in, slope, y);
      } else {
        unpack_rows_apart<IO, T, L>(f, tile, used, phase, row, rows, first, last, in, slope, y);
      }
    }
  }
}

inline uint32_t codes(const int32_t* support, int64_t count, int32_t base, uint16_t* out) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t code = static_cast<uint32_t>(support[i]) - static_cast<uint32_t>(base);
    out[i] = static_cast<uint16_t>(code);
    most = most > code ? most : code;
  }
  return most;
}

template <class IO, class T>
bool order_values(const int32_t* order, int64_t first, int64_t last, int64_t units, int64_t vector, const void* values,
                  void* out) {
  bool good = true;
  T* to = static_cast<T*>(out) + first * vector;
  for (int64_t t = first; t < last; ++t, to += vector) {
    const int64_t unit = order ? order[t] : t;
    if (static_cast<uint64_t>(unit) >= static_cast<uint64_t>(units)) {
      good = false;
      continue;
    }
    const IO* const from = static_cast<const IO*>(values) + unit * vector;
    for (int64_t k = 0; k < vector; ++k) to[k] = widen(from[k]);
  }
  return good;
}

template <class IO, class T>
bool scatter_values(const int32_t* order, int64_t first, int64_t last, int64_t units, int64_t vector, const void* sums,
                    void* out) {
  bool good = true;
  const T* from = static_cast<const T*>(sums) + first * vector;
  for (int64_t t = first; t < last; ++t, from += vector) {
    const int64_t unit = order ? order[t] : t;
    if (static_cast<uint64_t>(unit) >= static_cast<uint64_t>(units)) {
      good = false;
      continue;
    }
    IO* const to = static_cast<IO*>(out) + unit * vector;
    for (int64_t k = 0; k < vector; ++k) to[k] = Narrow<IO>::from(from[k]);
  }
  return good;
}

}  // namespace sparsegan::SPARSEGAN_ISA
