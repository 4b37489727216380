// Pack and unpack: between an NCHW tensor and a panel, where each vector lane holds another tile.
//
// L columns of L tiles are read as L row vectors and transposed in registers, so that neither side is touched element
// by element. Rows outside the tensor and columns in the padding become zeros; a phase is every `stride`-th row and
// column.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

SPARSEGAN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SPARSEGAN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Where one lane's tile of one plane lies in the tensor.
struct LanePlane {
  int64_t row;         // tensor row of panel row 0; may be negative
  int64_t base;        // element of panel row 0, column 0
  int64_t begin, end;  // panel columns that are inside the tensor
};

// The planes of all lanes in a group; returns how many lanes have a tile.
template <int L>
SPARSEGAN_INLINE int64_t lane_planes(const Frame& f, const Tiling& t, int64_t group, int64_t plane,
                                     LanePlane (&out)[L]) {
  const int64_t phases = f.phases_h * f.phases_w, channel = plane / phases;
  const int64_t phase_h = plane % phases / f.phases_w, phase_w = plane % f.phases_w;
  const int64_t used = smaller(L, t.tiles() - group * L);
  for (int64_t lane = 0; lane < used; ++lane) {
    const int64_t tile = group * L + lane, image = tile / (t.tiles_h * t.tiles_w),
                  place = tile % (t.tiles_h * t.tiles_w);
    const int64_t row = (place / t.tiles_w * t.tile_h + f.first_h) * f.phases_h + phase_h;
    const int64_t col = (place % t.tiles_w * t.tile_w + f.first_w) * f.phases_w + phase_w;
    const int64_t begin = col < 0 ? (-col + f.phases_w - 1) / f.phases_w : 0;
    const int64_t end = col < f.width ? smaller(f.cols, (f.width - col + f.phases_w - 1) / f.phases_w) : 0;
    out[lane] = {row, ((image * f.channels + channel) * f.height + row) * f.width + col, begin, larger(begin, end)};
  }
  return used;
}

// L elements from p, `step` (1 or 2) apart.
template <class IO, class T, int L>
SPARSEGAN_INLINE Vec<T, L> load_row(const IO* p, int64_t step) {
  const Vec<T, L> a = load_wide<IO, T, L>(p);
  if (step == 1) return a;
  return __builtin_shuffle(a, load_wide<IO, T, L>(p + L), lanes<T, L>([](int i) { return 2 * i; }));
}

template <class IO, class T, int L>
void pack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last, const void* tensor,
          void* panel) {
  const IO* const x = static_cast<const IO*>(tensor);
  const int64_t size = tiling.images * f.channels * f.height * f.width;
  const auto column = lanes<T, L>([](int i) { return i; });
  using Int = typename IntOf<sizeof(T)>::type;
  for (int64_t plane = first; plane < last; ++plane) {
    LanePlane lane[L];
    const int64_t used = lane_planes<L>(f, tiling, group, plane, lane);
    for (int64_t row = 0; row < f.rows; ++row) {
      T* const out = static_cast<T*>(panel) + ((plane * f.rows + row) * f.cols) * L;
      const int64_t row_step = row * f.phases_h;
      for (int64_t c = 0; c < f.cols; c += L) {
        const int64_t n = smaller(L, f.cols - c);
        Vec<T, L> v[L] = {};
        for (int64_t i = 0; i < used; ++i) {
          const LanePlane& p = lane[i];
          if (static_cast<uint64_t>(p.row + row_step) >= static_cast<uint64_t>(f.height)) continue;
          const int64_t at = p.base + row_step * f.width + c * f.phases_w;
          if (f.phases_w <= 2 && at >= 0 && at + L * f.phases_w <= size) {
            v[i] = load_row<IO, T, L>(x + at, f.phases_w);
            if (p.begin > c || p.end < c + n) {
              const auto inside = (column >= static_cast<Int>(p.begin - c)) & (column < static_cast<Int>(p.end - c));
              v[i] = inside ? v[i] : Vec<T, L>{};
            }
          } else {  // the tensor's first and last elements, and wide strides
            for (int64_t k = larger(0, p.begin - c); k < smaller(n, p.end - c); ++k)
              v[i][k] = widen(x[at + k * f.phases_w]);
          }
        }
        transpose<T, L>(v);
        for (int64_t i = 0; i < n; ++i) store<T, L>(out + (c + i) * L, v[i]);
      }
    }
  }
}

// The first n lanes of v to p, in ever smaller pieces.
template <class IO, class T, int L>
SPARSEGAN_INLINE void store_some(IO* p, Vec<T, L> v, int64_t n) {
  alignas(64) IO piece[L];
  store_narrow<IO, T, L>(piece, v);
  if (n >= L) {
    __builtin_memcpy(p, piece, sizeof(piece));
    return;
  }
  int64_t done = 0;
  for (; done + 4 <= n; done += 4) __builtin_memcpy(p + done, piece + done, 4 * sizeof(IO));
  for (; done < n; ++done) p[done] = piece[done];
}

// L columns from column c of a panel row, as one vector a tile.
template <class T, int L>
SPARSEGAN_INLINE void load_tiles(const T* in, int64_t n, Vec<T, L> (&v)[L]) {
  for (int64_t i = 0; i < L; ++i) v[i] = i < n ? load<T, L>(in + i * L) : Vec<T, L>{};
  transpose<T, L>(v);
}

template <class IO, class T, int L>
void unpack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last, const void* panel,
            void* tensor) {
  IO* const y = static_cast<IO*>(tensor);
  const int64_t plane_size = f.rows * f.cols * L;
  // Two column phases are neighbours in the tensor: they are interleaved in registers and stored together.
  const bool pairs = f.phases_w == 2;
  const auto low = lanes<T, L>([](int i) { return i % 2 * L + i / 2; });
  const auto high = lanes<T, L>([](int i) { return i % 2 * L + (i + L) / 2; });
  for (int64_t plane = first; plane < last; plane += pairs ? 2 : 1) {
    LanePlane lane[L], second[L];
    const int64_t used = lane_planes<L>(f, tiling, group, plane, lane);
    if (pairs) lane_planes<L>(f, tiling, group, plane + 1, second);
    for (int64_t row = 0; row < f.rows; ++row) {
      const T* const in = static_cast<const T*>(panel) + plane * plane_size + row * f.cols * L;
      for (int64_t c = 0; c < f.cols; c += L) {
        const int64_t n = smaller(L, f.cols - c);
        Vec<T, L> v[L], w[L];
        load_tiles<T, L>(in + c * L, n, v);
        if (pairs) load_tiles<T, L>(in + plane_size + c * L, n, w);
        for (int64_t i = 0; i < used; ++i) {
          const LanePlane& p = lane[i];
          if (p.row + row * f.phases_h >= f.height) continue;
          IO* const out = y + p.base + row * f.phases_h * f.width + c * f.phases_w;
          const int64_t count = smaller(n, p.end - c);
          if (count <= 0) continue;
          if (f.phases_w == 1) {
            store_some<IO, T, L>(out, v[i], count);
          } else if (pairs) {
            const int64_t both = count + smaller(n, second[i].end - c);
            store_some<IO, T, L>(out, __builtin_shuffle(v[i], w[i], low), smaller(both, L));
            if (both > L) store_some<IO, T, L>(out + L, __builtin_shuffle(v[i], w[i], high), both - L);
          } else {
            for (int64_t k = 0; k < count; ++k) out[k * f.phases_w] = Narrow<IO>::from(v[i][k]);
          }
        }
      }
    }
  }
}

template <class IO, class T>
void order_values(const int32_t* order, int64_t first, int64_t last, const void* values, void* out) {
  for (int64_t t = first; t < last; ++t) static_cast<T*>(out)[t] = widen(static_cast<const IO*>(values)[order[t]]);
}

template <class IO, class T>
void scatter_values(const int32_t* order, int64_t first, int64_t last, const void* sums, void* out) {
  for (int64_t t = first; t < last; ++t)
    static_cast<IO*>(out)[order[t]] = Narrow<IO>::from(static_cast<const T*>(sums)[t]);
}

}  // namespace sparsegan::SPARSEGAN_ISA
