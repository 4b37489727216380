// pack: copies an NCHW tensor to panel planes, and transforms, rounds and pads its elements on the way.
//
// A plane has one channel of the tensor or, in a short precision, the 2 or 4 channels of a lane (lanes.h). A channel of
// a panel is such a group below.
#pragma once

#include "activation.h"
#include "kernels.h"
#include "lanes.h"
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

// The input transform of each tensor channel of a panel's channel.
template <class Lane, int L, bool Any, class = std::make_integer_sequence<int, Lane::kChannels>>
struct LaneTransform;
template <class Lane, int L, bool Any, int... C>
struct LaneTransform<Lane, L, Any, std::integer_sequence<int, C...>> {
  ChannelTransform<typename Lane::Real, L, Any> of[Lane::kChannels];

  SPARSEGAN_INLINE LaneTransform(const InputTransform& p, const LaneTile (&tile)[L], int64_t used, int64_t channel)
      : of{{p, tile, used, channel * Lane::kChannels + C}...} {}
};

// Packs elements one by one: at the ends of the tensor, where a vector would read outside, and for very short runs.
template <class IO, class Lane, int L, bool Any>
SPARSEGAN_INLINE void pack_elements(const Frame& f, const int64_t (&start)[L],
                                    const Columns<typename Lane::X, L>& columns,
                                    const LaneTransform<Lane, L, Any>& transformed, const InputTransform& transform,
                                    const IO* channel, typename Lane::X* out) {
  using Real = typename Lane::Real;
  using X = typename Lane::X;
  for (int64_t e = 0; e < columns.count; ++e) {
    alignas(64) Real element[Lane::kChannels][L];
    Vec<typename Columns<X, L>::Int, L> in = {};
    for (int64_t i = 0; i < L; ++i) {
      const int64_t from = columns.from[e][i];
      in[i] = start[i] < 0 || from < 0 ? 0 : -1;
      for (int c = 0; c < Lane::kChannels; ++c) {
        element[c][i] = in[i] ? widen(channel[c * f.channel_stride + start[i] + from]) : Real(0);
      }
    }
    const auto one = [&](int c) __attribute__((always_inline)) { return transformed.of[c](load<Real, L>(element[c])); };
    const Vec<X, L> joined = Lane::template join<L>(one, transform);
    store<X, L>(out + columns.place[e], Lane::template stored<L>(where<X, L>(in, joined)));
  }
}

// Reads the lanes of a panel row at the edges of the tensor. They pass through an array in memory, because an index
// that is not constant would keep all of v in memory.
template <class IO, class Lane, int L, bool Any>
SPARSEGAN_INLINE void pack_edge(const Frame& f, const int64_t (&start)[L], const Columns<typename Lane::X, L>& columns,
                                const LaneTransform<Lane, L, Any>& transformed, const InputTransform& transform,
                                const IO* channel, Vec<typename Lane::X, L> (&v)[L]) {
  using Real = typename Lane::Real;
  using X = typename Lane::X;
  alignas(64) X lane[L][L];
  for (int64_t i = 0; i < L; ++i) {
    if (start[i] < 0) {
      store<X, L>(lane[i], Vec<X, L>{});
      continue;
    }
    const IO* const row = channel + start[i];
    const auto in_a_row = [&](int c) __attribute__((always_inline)) {
      return transformed.of[c](load_wide<IO, Real, L>(row + c * f.channel_stride + columns.column[i]), i);
    };
    const auto one_by_one = [&](int c) __attribute__((always_inline)) {
      alignas(64) Real element[L];
      for (int64_t e = 0; e < L; ++e) element[e] = widen(row[c * f.channel_stride + columns.from[e][i]]);
      return transformed.of[c](load<Real, L>(element), i);
    };
    if (columns.lane_whole[i]) {
      store<X, L>(lane[i], Lane::template join<L>(in_a_row, transform));
    } else if (f.padding == Padding::zeros) {
      store<X, L>(lane[i], where<X, L>(columns.inside[i], Lane::template join<L>(in_a_row, transform)));
    } else {
      store<X, L>(lane[i], Lane::template join<L>(one_by_one, transform));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) v[i] = load<X, L>(lane[i]);
}

// Packs the planes of channels [first, last) of one row phase, in panel rows [row, row + rows).
template <class IO, class Lane, int L, bool Any>
void pack_rows(const Frame& f, const LaneTile (&tile)[L], int64_t used, int64_t phase, int64_t row, int64_t rows,
               int64_t first, int64_t last, const InputTransform& transform, const IO* x, typename Lane::X* panel) {
  using X = typename Lane::X;
  constexpr int C = Lane::kChannels;
  const int64_t stride = C * f.channel_stride;
  const RowTable<L> table(f, tile, used, phase, row, rows);
  ColumnTable<X, L> column_table;
  // The runs of columns of one channel follow each other, because two runs may lie on one cache line.
  for (int64_t col = 0; col < f.cols * f.phases_w; col += kTableColumns * L) {
    column_table.set(f, tile, used, col);
    for (int64_t c = first; c < last; ++c) {
      const IO* const channel = x + c * stride;
      const LaneTransform<Lane, L, Any> transformed(transform, tile, used, c);
      for (int64_t k = 0; k < column_table.count; ++k) {
        const Columns<X, L>& columns = column_table.at[k];
        // Whole vectors may be read where they stay inside the tensor; elements of other rows are masked afterwards.
        // Emulated lanes are packed one by one: their vector code takes minutes to compile.
        const bool vectors = Lane::template native<L> && columns.count > few_elements(L) &&
                             c * stride + table.least + columns.least >= 0 &&
                             c * stride + (C - 1) * f.channel_stride + table.most + columns.most + L <= f.size;
        X* out = panel + (c * f.phases_h + phase) * f.phases_w * f.plane + row * f.cols * L;
        for (int64_t r = 0; r < rows; ++r, out += f.cols * L) {
          const int64_t (&start)[L] = table.start[r];
          if (!vectors) {
            pack_elements<IO, Lane, L, Any>(f, start, columns, transformed, transform, channel, out);
            continue;
          }
          if constexpr (Lane::template native<L>) {
            Vec<X, L> v[L];
            const auto read = [&](int i) __attribute__((always_inline)) {
              const IO* const from = channel + start[i] + columns.column[i];
              const auto one = [&](int d) __attribute__((always_inline)) {
                __builtin_prefetch(from + d * f.channel_stride + stride);
                return transformed.of[d](load_wide<IO, typename Lane::Real, L>(from + d * f.channel_stride), i);
              };
              v[i] = Lane::template join<L>(one, transform);
            };
            if (table.whole[r] && columns.whole) {
#pragma GCC unroll 16
              for (int i = 0; i < L; ++i) read(i);
            } else if (table.whole[r] && f.padding == Padding::zeros) {
#pragma GCC unroll 16
              for (int i = 0; i < L; ++i) {
                read(i);
                v[i] = where<X, L>(columns.inside[i], v[i]);
              }
            } else {
              pack_edge<IO, Lane, L, Any>(f, start, columns, transformed, transform, channel, v);
            }
            transpose<X, L>(v);
            if (columns.count == L) {
#pragma GCC unroll 16
              for (int e = 0; e < L; ++e) store<X, L>(out + columns.place[e], Lane::template stored<L>(v[e]));
            } else {
#pragma GCC unroll 16
              for (int e = 0; e < L; ++e) {
                if (e < columns.count) store<X, L>(out + columns.place[e], Lane::template stored<L>(v[e]));
              }
            }
          }
        }
      }
    }
  }
}

template <class IO, class Lane, int L>
void pack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last,
          const InputTransform& transform, const void* tensor, void* panel) {
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(f, tiling, group, tile);
  const auto rows = transform.any() ? &pack_rows<IO, Lane, L, true> : &pack_rows<IO, Lane, L, false>;
  for (int64_t phase = 0; phase < f.phases_h; ++phase) {
    for (int64_t row = 0; row < f.rows; row += kTableRows) {
      rows(f, tile, used, phase, row, smaller(kTableRows, f.rows - row), first, last, transform,
           static_cast<const IO*>(tensor), static_cast<typename Lane::X*>(panel));
    }
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
