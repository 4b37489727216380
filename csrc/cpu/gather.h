// gather: y[o, p] (+)= sum over taps of v * x[c, p + shift], one broadcast weight feeding a register tile of outputs.
//
// The lanes hold different tiles, so a shift is a whole-vector step and every load is aligned. The tile of R x Q
// accumulators is sized so that each tap costs R * Q FMAs with a memory operand and little else; the loop over a source
// block's taps runs innermost with the block's window of x in the first-level cache.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

template <class T, int L, int R, int Q>
void gather_tile(const TapRange& taps, const T* values, const T* x, int64_t x_row, T* y, int64_t y_row, int64_t y_plane,
                 const T* init, int64_t phases) {
  const uint16_t* const codes = taps.codes;
  const int32_t* const offsets = taps.offsets;
  for (int64_t target = taps.first; target < taps.last; ++target) {
    const int32_t begin = taps.rows[target], end = taps.rows[target + 1];
    if (begin == end && !init) continue;
    T* out = y + target * y_plane;
    Vec<T, L> acc[R][Q] = {};
    for (int32_t t = begin; t < end; ++t) {
      const T* in = x + offsets[codes[t]];
      const Vec<T, L> v = broadcast<T, L>(values[t]);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int q = 0; q < Q; ++q) acc[r][q] += v * load<T, L>(in + q * L);
        in += x_row;
        asm("" : "+r"(in));  // one pointer a row and constant displacements, not an address computed for each FMA
      }
    }
    // A block's sum is added to the sums before it: rounding grows with the root of the block, not of all taps.
    const Vec<T, L> start = broadcast<T, L>(init ? init[target / phases] : T(0));
    for (int r = 0; r < R; ++r) {
      for (int q = 0; q < Q; ++q) {
        T* const to = out + r * y_row + q * L;
        store<T, L>(to, acc[r][q] + (init ? start : load<T, L>(to)));
      }
    }
  }
}

template <class T>
using GatherTile = void (*)(const TapRange&, const T*, const T*, int64_t, T*, int64_t, int64_t, const T*, int64_t);

// tiles[R - 1][Q - 1]; null where R * Q accumulators do not fit.
template <class T, int L, int Accumulators, int MaxRows>
struct GatherTiles {
  GatherTile<T> at[MaxRows][kMaxCols] = {};

  constexpr GatherTiles() { fill<1, 1>(); }

  template <int R, int Q>
  constexpr void fill() {
    if constexpr (R * Q <= Accumulators) at[R - 1][Q - 1] = gather_tile<T, L, R, Q>;
    if constexpr (Q < kMaxCols) {
      fill<R, Q + 1>();
    } else if constexpr (R < MaxRows) {
      fill<R + 1, 1>();
    }
  }
};

template <class T, int L, int Accumulators, int MaxRows>
void gather(const TapRange& taps, const Tiling& t, int64_t row, const void* values, const void* x, int64_t x_cols,
            void* y, const void* init, int64_t phases) {
  static constexpr GatherTiles<T, L, Accumulators, MaxRows> tiles;
  const int64_t x_row = x_cols * L, y_row = t.tile_w * L, y_plane = t.tile_h * y_row;
  const int64_t rows = t.tile_h - row < t.rows ? t.tile_h - row : t.rows;
  for (int64_t col = 0; col < t.tile_w; col += t.cols) {  // the driver makes tile_w a multiple of cols
    tiles.at[rows - 1][t.cols - 1](
        taps, static_cast<const T*>(values), static_cast<const T*>(x) + row * x_row + col * L, x_row,
        static_cast<T*>(y) + row * y_row + col * L, y_row, y_plane, static_cast<const T*>(init), phases);
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
