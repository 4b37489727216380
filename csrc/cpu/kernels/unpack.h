// unpack: copies panel planes to an NCHW tensor, and transforms its elements and computes their moments on the way.
#pragma once

#include "activation.h"
#include "kernels.h"
#include "panel.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

// The moments (kMoments) of some elements of a channel, per lane. The elements are summed relative to a pivot near
// their mean, so that nothing cancels, and the sums are joined to the earlier moments (Chan, Golub and LeVeque 1983).
template <class T, int L>
struct Moments {
  Vec<T, L> pivot = {}, count = {}, sum = {}, squares = {};

  // Adds the lanes of v that are inside the tensor.
  SPARSEGAN_INLINE void add(Vec<T, L> v, Vec<typename IntOf<sizeof(T)>::type, L> in) {
    const Vec<T, L> d = where<T, L>(in, v - pivot);
    count += where<T, L>(in, broadcast<T, L>(T(1)));
    sum += d;
    squares += d * d;
  }
  // Adds all lanes of L vectors.
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

  // Joins these moments to those at `to`. m2 is the sum of squared distances from the mean.
  SPARSEGAN_INLINE void join(T* to) const {
    const auto any = count > Vec<T, L>{};
    const Vec<T, L> old_n = load<T, L>(to), old_mean = load<T, L>(to + L), old_m2 = load<T, L>(to + 2 * L);
    const Vec<T, L> new_n = any ? count : broadcast<T, L>(T(1)), n = old_n + new_n;
    const Vec<T, L> shift = sum / new_n, distance = pivot + shift - old_mean;
    store<T, L>(to, any ? n : old_n);
    store<T, L>(to + L, any ? old_mean + distance * (new_n / n) : old_mean);
    const Vec<T, L> m2 = old_m2 + (squares - sum * shift) + distance * distance * (old_n * new_n / n);
    store<T, L>(to + 2 * L, any ? m2 : old_m2);
  }
};

// Applies the output activation. The vectors pass through memory, as in pack_edge, so that a loop over them can hold
// the only copy of the activation's code.
template <class T, int L>
SPARSEGAN_INLINE void activate_all(Vec<T, L> (&v)[L], OutputActivation activation) {
  alignas(64) T element[L][L];
#pragma GCC unroll 16
  for (int e = 0; e < L; ++e) store<T, L>(element[e], v[e]);
#pragma GCC unroll 1
  for (int e = 0; e < L; ++e) store<T, L>(element[e], output_activation<T, L>(load<T, L>(element[e]), activation));
#pragma GCC unroll 16
  for (int e = 0; e < L; ++e) v[e] = load<T, L>(element[e]);
}

// Unpacks the planes of channels [first, last) of one row phase, in panel rows [row, row + rows).
template <class IO, class T, int L, bool WithMoments>
void unpack_rows(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t phase, int64_t row, int64_t rows,
                 int64_t first, int64_t last, const T* panel, const OutputTransform& transform, T* moments, IO* y) {
  const T slope = static_cast<T>(transform.negative_slope);
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
            for (int e = 0; e < L; ++e) v[e] = leaky_relu<T, L>(v[e], slope);
          }
          if (transform.activation != OutputActivation::none) activate_all<T, L>(v, transform.activation);
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
            const OutputTransform& transform, void* moments, void* tensor) {
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(f, tiling, group, tile);
  const auto rows = moments ? &unpack_rows<IO, T, L, true> : &unpack_rows<IO, T, L, false>;
  for (int64_t phase = 0; phase < f.phases_h; ++phase) {
    for (int64_t row = 0; row < f.rows; row += kTableRows) {
      rows(f, tile, used, phase, row, smaller(kTableRows, f.rows - row), first, last, static_cast<const T*>(panel),
           transform, static_cast<T*>(moments), static_cast<IO*>(tensor));
    }
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
