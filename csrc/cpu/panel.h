// Pack and unpack: between an NCHW tensor and a panel, where each vector lane holds another tile.
//
// L columns of L tiles are read as L row vectors and transposed in registers, so that neither side is touched element
// by element. Where a tile lies is worked out once for all channels: a table of the lanes' row starts, and for L
// columns which lanes reach over the tensor's edge. What lies beyond it is zero or another element, as Padding says; a
// phase is every `stride`-th row and column.
#pragma once

#include "curve.h"
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

// L neighbouring elements of a tensor row, and where they lie in a panel row: column phases take turns.
template <class T, int L>
struct Columns {
  using Int = typename IntOf<sizeof(T)>::type;

  int64_t count;          // of the elements that the panel has, at most L
  int64_t place[L];       // panel elements from the row's start in its first column phase, an element each
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

template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> where(Vec<typename IntOf<sizeof(T)>::type, L> in, Vec<T, L> v) {
  return reinterpret_cast<Vec<T, L>>(reinterpret_cast<Vec<typename IntOf<sizeof(T)>::type, L>>(v) & in);
}

// z where it is above 0, else slope * z.
template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> activated(Vec<T, L> z, T slope) {
  const Vec<T, L> zero = {}, scaled = slope == T(0) ? zero : z * broadcast<T, L>(slope);  // and 0 for minus infinity
  return z <= zero ? scaled : z;                                                          // NaN stays
}

// A channel's prologue, a lane each.
template <class T, int L, bool Any>
struct Change {
  alignas(64) T scale[L];
  alignas(64) T shift[L];
  T slope = T(1);

  SPARSEGAN_INLINE Change(const Prologue& p, const LaneTile (&tile)[L], int64_t used, int64_t channel) {
    if constexpr (Any) {
      for (int64_t i = 0; i < L; ++i) {
        const int64_t at = (i < used ? tile[i].number : 0) * p.image_stride + channel;
        scale[i] = p.scale ? static_cast<const T*>(p.scale)[at] : T(1);
        shift[i] = p.scale ? static_cast<const T*>(p.shift)[at] : T(0);
      }
      if (p.slope) slope = static_cast<const T*>(p.slope)[channel];
    }
  }

  // Of elements of lane i.
  SPARSEGAN_INLINE Vec<T, L> operator()(Vec<T, L> x, int64_t i) const {
    if constexpr (!Any) return x;
    return active(x * broadcast<T, L>(scale[i]) + broadcast<T, L>(shift[i]));
  }
  // Of one element of each lane.
  SPARSEGAN_INLINE Vec<T, L> operator()(Vec<T, L> x) const {
    if constexpr (!Any) return x;
    return active(x * load<T, L>(scale) + load<T, L>(shift));
  }

 private:
  SPARSEGAN_INLINE Vec<T, L> active(Vec<T, L> z) const { return slope == T(1) ? z : activated<T, L>(z, slope); }
};

// A few elements of each lane one by one: where vectors would read outside the tensor, or would hardly be filled.
template <class IO, class T, int L, bool Any>
SPARSEGAN_INLINE void pack_elements(const int64_t (&start)[L], const Columns<T, L>& columns,
                                    const Change<T, L, Any>& change, const IO* channel, T* out) {
  for (int64_t e = 0; e < columns.count; ++e) {
    alignas(64) T element[L];
    Vec<typename Columns<T, L>::Int, L> in;
    for (int64_t i = 0; i < L; ++i) {
      const int64_t from = columns.from[e][i];
      in[i] = start[i] < 0 || from < 0 ? 0 : -1;
      element[i] = in[i] ? widen(channel[start[i] + from]) : T(0);
    }
    store<T, L>(out + columns.place[e], where<T, L>(in, change(load<T, L>(element))));
  }
}

// A panel row's lanes at edges of the tensor. Through memory: an index that is not constant would keep all of v there.
template <class IO, class T, int L, bool Any>
SPARSEGAN_INLINE void pack_edge(const Frame& f, const int64_t (&start)[L], const Columns<T, L>& columns,
                                const Change<T, L, Any>& change, const IO* channel, Vec<T, L> (&v)[L]) {
  alignas(64) T lane[L][L];
  for (int64_t i = 0; i < L; ++i) {
    if (start[i] < 0) {
      store<T, L>(lane[i], Vec<T, L>{});
      continue;
    }
    const IO* const row = channel + start[i];
    if (columns.lane_whole[i]) {
      store<T, L>(lane[i], change(load_wide<IO, T, L>(row + columns.column[i]), i));
    } else if (f.padding == Padding::zeros) {
      store<T, L>(lane[i], where<T, L>(columns.inside[i], change(load_wide<IO, T, L>(row + columns.column[i]), i)));
    } else {
      for (int64_t e = 0; e < L; ++e) lane[i][e] = widen(row[columns.from[e][i]]);
      store<T, L>(lane[i], change(load<T, L>(lane[i]), i));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) v[i] = load<T, L>(lane[i]);
}

// The planes of channels [first, last) of one row phase, in panel rows [row, row + rows).
template <class IO, class T, int L, bool Any>
void pack_rows(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t phase, int64_t row, int64_t rows,
               int64_t first, int64_t last, const Prologue& prologue, const IO* x, T* panel) {
  const RowTable<L> table(f, tile, used, phase, row, rows);
  ColumnTable<T, L> column_table;
  // A channel's columns one after the other: two runs of them may share a cache line.
  for (int64_t col = 0; col < f.cols * f.phases_w; col += kTableColumns * L) {
    column_table.set(f, tile, used, col);
    for (int64_t c = first; c < last; ++c) {
      const IO* const channel = x + c * f.channel_stride;
      const Change<T, L, Any> change(prologue, tile, used, c);
      for (int64_t k = 0; k < column_table.count; ++k) {
        const Columns<T, L>& columns = column_table.at[k];
        // Whole vectors may be read where they stay inside the tensor, whatever they meet there.
        const bool vectors = columns.count > few_elements(L) &&
                             c * f.channel_stride + table.least + columns.least >= 0 &&
                             c * f.channel_stride + table.most + columns.most + L <= f.size;
        T* out = panel + (c * f.phases_h + phase) * f.phases_w * f.plane + row * f.cols * L;
        for (int64_t r = 0; r < rows; ++r, out += f.cols * L) {
          const int64_t (&start)[L] = table.start[r];
          if (!vectors) {
            pack_elements<IO, T, L, Any>(start, columns, change, channel, out);
            continue;
          }
          Vec<T, L> v[L];
          const auto read = [&](int i) __attribute__((always_inline)) {
            const IO* const from = channel + start[i] + columns.column[i];
            __builtin_prefetch(from + f.channel_stride);
            v[i] = change(load_wide<IO, T, L>(from), i);
          };
          if (table.whole[r] && columns.whole) {
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) read(i);
          } else if (table.whole[r] && f.padding == Padding::zeros) {
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) {
              read(i);
              v[i] = where<T, L>(columns.inside[i], v[i]);
            }
          } else {
            pack_edge<IO, T, L, Any>(f, start, columns, change, channel, v);
          }
          transpose<T, L>(v);
          if (columns.count == L) {
#pragma GCC unroll 16
            for (int e = 0; e < L; ++e) store<T, L>(out + columns.place[e], v[e]);
          } else {
#pragma GCC unroll 16
            for (int e = 0; e < L; ++e) {
              if (e < columns.count) store<T, L>(out + columns.place[e], v[e]);
            }
          }
        }
      }
    }
  }
}

template <class IO, class T, int L>
void pack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last, const Prologue& prologue,
          const void* tensor, void* panel) {
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(f, tiling, group, tile);
  const auto rows = prologue.any() ? &pack_rows<IO, T, L, true> : &pack_rows<IO, T, L, false>;
  for (int64_t phase = 0; phase < f.phases_h; ++phase) {
    for (int64_t row = 0; row < f.rows; row += kTableRows) {
      rows(f, tile, used, phase, row, smaller(kTableRows, f.rows - row), first, last, prologue,
           static_cast<const IO*>(tensor), static_cast<T*>(panel));
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

// What is known of a channel's elements by their lanes' tiles: see kMoments. A run is summed from a pivot near its
// mean, so that nothing cancels, and joined to the runs before it (Chan, Golub and LeVeque 1983).
template <class T, int L>
struct Moments {
  Vec<T, L> pivot = {}, count = {}, sum = {}, squares = {};

  // Lanes of v that are in the tensor.
  SPARSEGAN_INLINE void add(Vec<T, L> v, Vec<typename IntOf<sizeof(T)>::type, L> in) {
    const Vec<T, L> d = where<T, L>(in, v - pivot);
    count += where<T, L>(in, broadcast<T, L>(T(1)));
    sum += d;
    squares += d * d;
  }
  // All of L vectors.
  SPARSEGAN_INLINE void add(const Vec<T, L> (&v)[L]) {
    Vec<T, L> s[2] = {}, q[2] = {};
#pragma GCC unroll 16
    for (int e = 0; e < L; ++e) {
      const Vec<T, L> d = v[e] - pivot;
      s[e % 2] += d;
      q[e % 2] += d * d;
    }
    count += broadcast<T, L>(T(L));
    sum += s[0] + s[1];
    squares += q[0] + q[1];
  }

  SPARSEGAN_INLINE void join(T* to) const {
    const auto any = count > Vec<T, L>{};
    const Vec<T, L> n0 = load<T, L>(to), mean0 = load<T, L>(to + L), far0 = load<T, L>(to + 2 * L);
    const Vec<T, L> n1 = any ? count : broadcast<T, L>(T(1)), n = n0 + n1;
    const Vec<T, L> shift = sum / n1, distance = pivot + shift - mean0;
    store<T, L>(to, any ? n : n0);
    store<T, L>(to + L, any ? mean0 + distance * (n1 / n) : mean0);
    const Vec<T, L> far = far0 + (squares - sum * shift) + distance * distance * (n0 * n1 / n);
    store<T, L>(to + 2 * L, any ? far : far0);
  }
};

// Through memory, as in pack_edge, and with one copy of the code.
template <class T, int L>
SPARSEGAN_INLINE void curve_all(Vec<T, L> (&v)[L], Curve curve) {
  alignas(64) T element[L][L];
#pragma GCC unroll 16
  for (int e = 0; e < L; ++e) store<T, L>(element[e], v[e]);
#pragma GCC unroll 1
  for (int e = 0; e < L; ++e) store<T, L>(element[e], curved<T, L>(load<T, L>(element[e]), curve));
#pragma GCC unroll 16
  for (int e = 0; e < L; ++e) v[e] = load<T, L>(element[e]);
}

// The planes of channels [first, last) of one row phase, in panel rows [row, row + rows).
template <class IO, class T, int L, bool WithMoments>
void unpack_rows(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t phase, int64_t row, int64_t rows,
                 int64_t first, int64_t last, const T* panel, const Epilogue& epilogue, T* moments, IO* y) {
  const T slope = static_cast<T>(epilogue.negative_slope);
  using Int = typename IntOf<sizeof(T)>::type;
  const RowTable<L> table(f, tile, used, phase, row, rows);
  ColumnTable<T, L> column_table;
  for (int64_t col = 0; col < f.cols * f.phases_w; col += kTableColumns * L) {
    column_table.set(f, tile, used, col);
    for (int64_t c = first; c < last; ++c) {
      IO* const channel = y + c * f.channel_stride;
      for (int64_t k = 0; k < column_table.count; ++k) {
        const Columns<T, L>& columns = column_table.at[k];
        const bool full = columns.whole && columns.count == L;
        const T* in = panel + (c * f.phases_h + phase) * f.phases_w * f.plane + row * f.cols * L;
        Moments<T, L> found;
        if constexpr (WithMoments) found.pivot = load<T, L>(in + columns.place[0]);
        for (int64_t r = 0; r < rows; ++r, in += f.cols * L) {
          const int64_t (&start)[L] = table.start[r];
          Vec<T, L> v[L];
          if (columns.count == L) {
#pragma GCC unroll 16
            for (int e = 0; e < L; ++e) v[e] = load<T, L>(in + columns.place[e]);
          } else {
#pragma GCC unroll 16
            for (int e = 0; e < L; ++e) v[e] = e < columns.count ? load<T, L>(in + columns.place[e]) : Vec<T, L>{};
          }
          if (slope != T(1)) {
#pragma GCC unroll 16
            for (int e = 0; e < L; ++e) v[e] = activated<T, L>(v[e], slope);
          }
          if (epilogue.curve != Curve::none) curve_all<T, L>(v, epilogue.curve);
          if constexpr (WithMoments) {
            if (full && table.whole[r]) {
              found.add(v);
            } else {
              Vec<Int, L> in_tensor;
              for (int64_t i = 0; i < L; ++i) {
                in_tensor[i] = static_cast<Int>(start[i] < 0 ? 0 : columns.elements[i]);
              }
#pragma GCC unroll 16
              for (int e = 0; e < L; ++e) found.add(v[e], in_tensor > static_cast<Int>(e));
            }
          }
          transpose<T, L>(v);
          if (full && table.whole[r]) {
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) store_narrow<IO, T, L>(channel + start[i] + columns.column[i], v[i]);
          } else {
            for (int64_t i = 0; i < used; ++i) {
              if (start[i] >= 0)
                store_some<IO, T, L>(channel + start[i] + columns.column[i], v[i], columns.elements[i]);
            }
          }
        }
        if constexpr (WithMoments) found.join(moments + c * kMoments * L);
      }
    }
  }
}

template <class IO, class T, int L>
void unpack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last, const void* panel,
            const Epilogue& epilogue, void* moments, void* tensor) {
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(f, tiling, group, tile);
  const auto rows = moments ? &unpack_rows<IO, T, L, true> : &unpack_rows<IO, T, L, false>;
  for (int64_t phase = 0; phase < f.phases_h; ++phase) {
    for (int64_t row = 0; row < f.rows; row += kTableRows) {
      rows(f, tile, used, phase, row, smaller(kTableRows, f.rows - row), first, last, static_cast<const T*>(panel),
           epilogue, static_cast<T*>(moments), static_cast<IO*>(tensor));
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

template <class IO, class T, bool Single>
SPARSEGAN_INLINE bool order_units(const int32_t* order, int64_t count, int64_t units, int64_t vector, const IO* values,
                                  T* out) {
  constexpr int64_t kAhead = 32;
  if constexpr (Single) vector = 1;
  uint32_t bad = 0;
  for (int64_t t = 0; t < count; ++t) {
    __builtin_prefetch(values + order[t + kAhead < count ? t + kAhead : t] * vector);
    const uint32_t unit = static_cast<uint32_t>(order[t]);
    const bool good = unit < static_cast<uint64_t>(units);
    bad |= !good;
    const IO* const from = values + (good ? unit : 0) * vector;
    for (int64_t k = 0; k < vector; ++k) out[t * vector + k] = widen(from[k]);
  }
  return !bad;
}

template <class IO, class T>
bool order_values(const int32_t* order, int64_t first, int64_t last, int64_t units, int64_t vector, const void* values_,
                  void* out_) {
  const IO* const values = static_cast<const IO*>(values_);
  T* const out = static_cast<T*>(out_) + first * vector;
  if (!order) {
    for (int64_t i = 0; i < (last - first) * vector; ++i) out[i] = widen(values[first * vector + i]);
    return true;
  }
  return vector == 1 ? order_units<IO, T, true>(order + first, last - first, units, vector, values, out)
                     : order_units<IO, T, false>(order + first, last - first, units, vector, values, out);
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
