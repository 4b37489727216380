// pack: copies an NCHW tensor to panel planes, and transforms and pads its elements on the way.
#pragma once

#include "activation.h"
#include "kernels.h"
#include "panel.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

// The input transform of one channel. Scale and shift are per lane.
template <class T, int L, bool Any>
struct ChannelTransform {
  alignas(64) T scale[L];
  alignas(64) T shift[L];
  T slope = T(1);

  SPARSEGAN_INLINE ChannelTransform(const InputTransform& p, const LaneTile (&tile)[L], int64_t used, int64_t channel) {
    if constexpr (Any) {
      for (int64_t i = 0; i < L; ++i) {
        const int64_t at = (i < used ? tile[i].image : 0) * p.image_stride + channel;
        scale[i] = p.scale ? static_cast<const T*>(p.scale)[at] : T(1);
        shift[i] = p.scale ? static_cast<const T*>(p.shift)[at] : T(0);
      }
      if (p.slope) slope = static_cast<const T*>(p.slope)[channel];
    }
  }

  // Transforms neighbouring elements of lane i.
  SPARSEGAN_INLINE Vec<T, L> operator()(Vec<T, L> x, int64_t i) const {
    if constexpr (!Any) return x;
    return active(x * broadcast<T, L>(scale[i]) + broadcast<T, L>(shift[i]));
  }
  // Transforms one element of each lane.
  SPARSEGAN_INLINE Vec<T, L> operator()(Vec<T, L> x) const {
    if constexpr (!Any) return x;
    return active(x * load<T, L>(scale) + load<T, L>(shift));
  }

 private:
  SPARSEGAN_INLINE Vec<T, L> active(Vec<T, L> z) const { return slope == T(1) ? z : leaky_relu<T, L>(z, slope); }
};

// Packs elements one by one: at the ends of the tensor, where a vector would read outside, and for very short runs.
template <class IO, class T, int L, bool Any>
SPARSEGAN_INLINE void pack_elements(const int64_t (&start)[L], const Columns<T, L>& columns,
                                    const ChannelTransform<T, L, Any>& transformed, const IO* channel, T* out) {
  for (int64_t e = 0; e < columns.count; ++e) {
    alignas(64) T element[L];
    Vec<typename Columns<T, L>::Int, L> in;
    for (int64_t i = 0; i < L; ++i) {
      const int64_t from = columns.from[e][i];
      in[i] = start[i] < 0 || from < 0 ? 0 : -1;
      element[i] = in[i] ? widen(channel[start[i] + from]) : T(0);
    }
    store<T, L>(out + columns.place[e], where<T, L>(in, transformed(load<T, L>(element))));
  }
}

// Reads the lanes of a panel row at the edges of the tensor. They pass through an array in memory, because an index
// that is not constant would keep all of v in memory.
template <class IO, class T, int L, bool Any>
SPARSEGAN_INLINE void pack_edge(const Frame& f, const int64_t (&start)[L], const Columns<T, L>& columns,
                                const ChannelTransform<T, L, Any>& transformed, const IO* channel, Vec<T, L> (&v)[L]) {
  alignas(64) T lane[L][L];
  for (int64_t i = 0; i < L; ++i) {
    if (start[i] < 0) {
      store<T, L>(lane[i], Vec<T, L>{});
      continue;
    }
    const IO* const row = channel + start[i];
    if (columns.lane_whole[i]) {
      store<T, L>(lane[i], transformed(load_wide<IO, T, L>(row + columns.column[i]), i));
    } else if (f.padding == Padding::zeros) {
      store<T, L>(lane[i],
                  where<T, L>(columns.inside[i], transformed(load_wide<IO, T, L>(row + columns.column[i]), i)));
    } else {
      for (int64_t e = 0; e < L; ++e) lane[i][e] = widen(row[columns.from[e][i]]);
      store<T, L>(lane[i], transformed(load<T, L>(lane[i]), i));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) v[i] = load<T, L>(lane[i]);
}

// Packs the planes of channels [first, last) of one row phase, in panel rows [row, row + rows).
template <class IO, class T, int L, bool Any>
void pack_rows(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t phase, int64_t row, int64_t rows,
               int64_t first, int64_t last, const InputTransform& transform, const IO* x, T* panel) {
  const RowTable<L> table(f, tile, used, phase, row, rows);
  ColumnTable<T, L> column_table;
  // The runs of columns of one channel follow each other, because two runs may lie on one cache line.
  for (int64_t col = 0; col < f.cols * f.phases_w; col += kTableColumns * L) {
    column_table.set(f, tile, used, col);
    for (int64_t c = first; c < last; ++c) {
      const IO* const channel = x + c * f.channel_stride;
      const ChannelTransform<T, L, Any> transformed(transform, tile, used, c);
      for (int64_t k = 0; k < column_table.count; ++k) {
        const Columns<T, L>& columns = column_table.at[k];
        // Whole vectors may be read where they stay inside the tensor; elements of other rows are masked afterwards.
        const bool vectors = columns.count > few_elements(L) &&
                             c * f.channel_stride + table.least + columns.least >= 0 &&
                             c * f.channel_stride + table.most + columns.most + L <= f.size;
        T* out = panel + (c * f.phases_h + phase) * f.phases_w * f.plane + row * f.cols * L;
        for (int64_t r = 0; r < rows; ++r, out += f.cols * L) {
          const int64_t (&start)[L] = table.start[r];
          if (!vectors) {
            pack_elements<IO, T, L, Any>(start, columns, transformed, channel, out);
            continue;
          }
          Vec<T, L> v[L];
          const auto read = [&](int i) __attribute__((always_inline)) {
            const IO* const from = channel + start[i] + columns.column[i];
            __builtin_prefetch(from + f.channel_stride);
            v[i] = transformed(load_wide<IO, T, L>(from), i);
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
            pack_edge<IO, T, L, Any>(f, start, columns, transformed, channel, v);
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
void pack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last,
          const InputTransform& transform, const void* tensor, void* panel) {
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(f, tiling, group, tile);
  const auto rows = transform.any() ? &pack_rows<IO, T, L, true> : &pack_rows<IO, T, L, false>;
  for (int64_t phase = 0; phase < f.phases_h; ++phase) {
    for (int64_t row = 0; row < f.rows; row += kTableRows) {
      rows(f, tile, used, phase, row, smaller(kTableRows, f.rows - row), first, last, transform,
           static_cast<const IO*>(tensor), static_cast<T*>(panel));
    }
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
