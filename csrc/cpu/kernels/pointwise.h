// pointwise: one plane of a tensor, or the sum of two planes. An affine map and a LeakyReLU are applied to each plane,
// and an activation to the result.
#pragma once

#include "activation.h"
#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

// Reads the elements of a plane, L at a time, and applies the plane's affine map and LeakyReLU.
template <class IO, class T, int L>
struct Mapped {
  const IO* x;
  T scale, shift, slope;

  explicit SPARSEGAN_INLINE Mapped(const Plane& p)
      : x(static_cast<const IO*>(p.x)),
        scale(static_cast<T>(p.scale)),
        shift(static_cast<T>(p.shift)),
        slope(static_cast<T>(p.slope)) {}

  // Returns elements [at, at + count); count is at most L.
  SPARSEGAN_INLINE Vec<T, L> operator()(int64_t at, int64_t count) const {
    Vec<T, L> v = {};
    if (count == L) {
      v = load_wide<IO, T, L>(x + at);
    } else {
      for (int64_t i = 0; i < count; ++i) v[i] = widen(x[at + i]);
    }
    const Vec<T, L> z = v * broadcast<T, L>(scale) + broadcast<T, L>(shift);
    return slope == T(1) ? z : leaky_relu<T, L>(z, slope);
  }
};

// Writes a + b with `Sum`, else a. y may be the plane of a or b where repeat is 1.
template <class IO, class T, int L, bool Sum>
void pointwise_rows(const Plane& a_plane, const Plane& b_plane, OutputActivation activation, int64_t rows,
                    int64_t width, int64_t repeat, IO* y) {
  const Mapped<IO, T, L> a(a_plane), b(b_plane);
  for (int64_t row = 0; row < rows; ++row) {
    IO* const out = y + row * width * repeat * repeat;
    for (int64_t i = 0; i < width; i += L) {
      const int64_t count = smaller(L, width - i);
      Vec<T, L> z = a(row * width + i, count);
      if constexpr (Sum) z += b(row * width + i, count);
      z = output_activation<T, L>(z, activation);
      if (repeat == 1) {
        store_some<IO, T, L>(out + i, z, count);
        continue;
      }
      for (int64_t e = 0; e < count; ++e) {
        for (int64_t k = 0; k < repeat; ++k) out[(i + e) * repeat + k] = Narrow<IO>::from(z[e]);
      }
    }
    for (int64_t k = 1; k < repeat; ++k) {
      __builtin_memcpy(out + k * width * repeat, out, static_cast<size_t>(width * repeat) * sizeof(IO));
    }
  }
}

template <class IO, class T, int L>
void pointwise(const Plane& a, const Plane* b, OutputActivation activation, int64_t height, int64_t width,
               int64_t repeat, void* y) {
  const int64_t rows = repeat == 1 ? 1 : height, length = repeat == 1 ? height * width : width;
  if (b) {
    pointwise_rows<IO, T, L, true>(a, *b, activation, rows, length, repeat, static_cast<IO*>(y));
  } else {
    pointwise_rows<IO, T, L, false>(a, a, activation, rows, length, repeat, static_cast<IO*>(y));
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
