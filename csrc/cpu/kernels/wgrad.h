// wgrad: dv[tap] += sum over positions and lanes of gy[o, p] * x[c, p + shift], at kept units only.
//
// Several taps of one target run together, each with separate sums. One load of gy serves all these taps, and one load
// of x serves all W channels of a unit, so that an FMA needs little more than one load. Rows are cut into strips that
// keep x's window in the first-level cache.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

template <class T, int L, int W, int Taps>
SPARSEGAN_INLINE void wgrad_taps(const TapRange& range, int64_t tap, const T* gy, int64_t gy_plane, const T* x,
                                 int64_t x_row, int64_t rows, int64_t cols, T* dv) {
  const T* in[Taps];
  Vec<T, L> acc[W * Taps] = {};
  for (int k = 0; k < Taps; ++k) in[k] = x + range.offsets[range.codes[tap + k]];
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * x_row;
    for (int64_t col = 0; col < cols; ++col) {
      Vec<T, L> g[W];
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) g[w] = load_once<T, L>(gy + w * gy_plane + col * L);
#pragma GCC unroll 16
      for (int k = 0; k < Taps; ++k) {
        const Vec<T, L> a = W == 1 ? load<T, L>(in[k] + at + col * L) : load_once<T, L>(in[k] + at + col * L);
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) acc[k * W + w] += g[w] * a;
      }
    }
    gy += cols * L;
  }
  constexpr int N = W * Taps, kTogether = N >= 8 && L >= 8 ? 8 : N >= 4 && L >= 4 ? 4 : 1;
  for (int first = 0; first < N; first += kTogether) {
    Vec<T, L> some[kTogether];
    for (int i = 0; i < kTogether; ++i) some[i] = acc[first + i];
    const Vec<T, L> total = sum_each<T, L, kTogether>(some);
    for (int i = 0; i < kTogether; ++i) dv[(tap + (first + i) / W) * range.width + (first + i) % W] += total[i];
  }
}

template <class T, int L, int W>
void wgrad(const TapRange& range, const Tiling& t, const Frame& x_frame, const Frame& y_frame, const void* gy_panel,
           const void* x_panel, void* dv_) {
  constexpr int kTaps = 8 / W;  // per output: W loads of gy and kTaps loads of x for W * kTaps FMAs
  const int64_t x_row = x_frame.cols * L, gy_row = y_frame.cols * L, gy_plane = y_frame.plane;
  for (int64_t row = 0; row < t.tile_h; row += t.rows) {
    const int64_t rows = t.tile_h - row < t.rows ? t.tile_h - row : t.rows;
    const T* x = static_cast<const T*>(x_panel) + row * x_row;
    for (int64_t target = range.first; target < range.last; ++target) {
      const int64_t channel = target / range.phases * range.width, phase = target % range.phases;
      const int64_t begin = range.begin(target), end = range.end(target);
      for (int64_t part = 0; part < range.width; part += W) {
        const T* gy =
            static_cast<const T*>(gy_panel) + ((channel + part) * range.phases + phase) * gy_plane + row * gy_row;
        T* const dv = static_cast<T*>(dv_) + part;
        int64_t tap = begin;
        for (; tap + kTaps <= end; tap += kTaps) {
          wgrad_taps<T, L, W, kTaps>(range, tap, gy, range.phases * gy_plane, x, x_row, rows, t.tile_w, dv);
        }
        if constexpr (kTaps > 4) {
          if (tap + 4 <= end) {
            wgrad_taps<T, L, W, 4>(range, tap, gy, range.phases * gy_plane, x, x_row, rows, t.tile_w, dv);
            tap += 4;
          }
        }
        for (; tap < end; ++tap) {
          wgrad_taps<T, L, W, 1>(range, tap, gy, range.phases * gy_plane, x, x_row, rows, t.tile_w, dv);
        }
      }
    }
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
