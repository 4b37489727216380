// pointwise: one plane of a tensor, or the sum of two, each by its own affine map and activation, on the way to
// another.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

template <class IO, class T>
SPARSEGAN_INLINE T changed(IO x, T scale, T shift, T slope) {
  const T z = widen(x) * scale + shift;
  return z <= T(0) ? (slope == T(0) ? T(0) : z * slope) : z;
}

// y may be a's or b's own plane where nothing is repeated.
template <class IO, class T>
void pointwise(const Plane& a, const Plane* b, int64_t height, int64_t width, int64_t repeat, void* y) {
  const auto scale = static_cast<T>(a.scale), shift = static_cast<T>(a.shift), slope = static_cast<T>(a.slope);
  const auto scale_b = static_cast<T>(b ? b->scale : 0), shift_b = static_cast<T>(b ? b->shift : 0),
             slope_b = static_cast<T>(b ? b->slope : 0);
  const int64_t count = repeat == 1 ? height * width : width, rows = repeat == 1 ? 1 : height;
  for (int64_t row = 0; row < rows; ++row) {
    const IO* const from = static_cast<const IO*>(a.x) + row * count;
    const IO* const other = b ? static_cast<const IO*>(b->x) + row * count : nullptr;
    const auto sum = [&](int64_t i) __attribute__((always_inline)) {
      return changed<IO, T>(from[i], scale, shift, slope) + changed<IO, T>(other[i], scale_b, shift_b, slope_b);
    };
    const auto one = [&](int64_t i)
                         __attribute__((always_inline)) { return changed<IO, T>(from[i], scale, shift, slope); };
    IO* const out = static_cast<IO*>(y) + row * count * repeat * repeat;
    if (repeat == 1) {
      if (other) {
#pragma GCC ivdep
        for (int64_t i = 0; i < count; ++i) out[i] = Narrow<IO>::from(sum(i));
      } else {
#pragma GCC ivdep
        for (int64_t i = 0; i < count; ++i) out[i] = Narrow<IO>::from(one(i));
      }
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      const IO z = Narrow<IO>::from(other ? sum(i) : one(i));
      for (int64_t k = 0; k < repeat; ++k) out[i * repeat + k] = z;
    }
    for (int64_t k = 1; k < repeat; ++k) {
      __builtin_memcpy(out + k * count * repeat, out, static_cast<size_t>(count * repeat) * sizeof(IO));
    }
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
