// wgrad: dv[tap] += sum over positions and lanes of gy[o, p] * x[c, p + shift], at kept weights only.
//
// Several taps of one target run together, each with an accumulator of its own, so that one load of gy serves all of
// them and an FMA needs little more than one load. Rows are cut into strips that keep x's window in the first-level
// cache.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

template <class T, int L, int Taps>
SPARSEGAN_INLINE void wgrad_taps(const TapRange& range, int32_t tap, const T* gy, const T* x, int64_t x_row,
                                 int64_t rows, int64_t cols, T* dv) {
  const T* in[Taps];
  Vec<T, L> acc[Taps];
  for (int k = 0; k < Taps; ++k) {
    in[k] = x + range.offsets[range.codes[tap + k]];
    acc[k] = Vec<T, L>{};
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * x_row;
    for (int64_t col = 0; col < cols; ++col) {
      const Vec<T, L> g = load<T, L>(gy + col * L);
#pragma GCC unroll 16
      for (int k = 0; k < Taps; ++k) acc[k] += g * load<T, L>(in[k] + at + col * L);
    }
    gy += cols * L;
  }
  for (int k = 0; k < Taps; ++k) dv[tap + k] += sum<T, L>(acc[k]);
}

template <class T, int L>
void wgrad(const TapRange& range, const Tiling& t, const void* gy_panel, const void* x_panel, int64_t x_cols,
           void* dv_) {
  constexpr int64_t kStripVectors = 64;
  const int64_t x_row = x_cols * L, gy_row = t.tile_w * L, gy_plane = t.tile_h * gy_row;
  const int64_t strip = t.tile_w >= kStripVectors ? 1 : kStripVectors / t.tile_w;
  T* dv = static_cast<T*>(dv_);
  for (int64_t row = 0; row < t.tile_h; row += strip) {
    const int64_t rows = t.tile_h - row < strip ? t.tile_h - row : strip;
    const T* x = static_cast<const T*>(x_panel) + row * x_row;
    for (int64_t target = range.first; target < range.last; ++target) {
      const T* gy = static_cast<const T*>(gy_panel) + target * gy_plane + row * gy_row;
      int32_t tap = range.rows[target];
      const int32_t end = range.rows[target + 1];
      for (; tap + 8 <= end; tap += 8) wgrad_taps<T, L, 8>(range, tap, gy, x, x_row, rows, t.tile_w, dv);
      if (tap + 4 <= end) {
        wgrad_taps<T, L, 4>(range, tap, gy, x, x_row, rows, t.tile_w, dv);
        tap += 4;
      }
      for (; tap < end; ++tap) wgrad_taps<T, L, 1>(range, tap, gy, x, x_row, rows, t.tile_w, dv);
    }
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
