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

// The tile that a lane holds.
struct LaneTile {
  int64_t base;      // element of its first row and column in channel 0, phase 0; halo included
  int64_t row, col;  // that row and column in a phase's grid; may be negative
};

// The tiles of a group; returns how many lanes have one.
template <int L>
SPARSEGAN_INLINE int64_t lane_tiles(const Frame& f, const Tiling& t, int64_t group, LaneTile (&out)[L]) {
  const int64_t used = smaller(L, t.tiles() - group * L);
  for (int64_t lane = 0; lane < used; ++lane) {
    const int64_t tile = group * L + lane, image = tile / (t.tiles_h * t.tiles_w),
                  place = tile % (t.tiles_h * t.tiles_w);
    const int64_t row = place / t.tiles_w * t.tile_h + f.first_h, col = place % t.tiles_w * t.tile_w + f.first_w;
    out[lane] = {image * f.image_stride + row * f.row_stride + col * f.phases_w, row, col};
  }
  return used;
}

// One plane: which phase of which channel, and how far its grid reaches.
struct Plane {
  int64_t offset;  // from a LaneTile's base
  int64_t grid_rows, grid_cols;
};

SPARSEGAN_INLINE Plane plane_of(const Frame& f, int64_t plane) {
  const int64_t phases = f.phases_h * f.phases_w, channel = plane / phases;
  const int64_t phase_h = plane % phases / f.phases_w, phase_w = plane % f.phases_w;
  return {channel * f.channel_stride + phase_h * f.phase_stride + phase_w, f.grid_rows(phase_h), f.grid_cols(phase_w)};
}

// One plane of a group, or the two column phases of a row phase at once: they are neighbours in the tensor.
template <class IO, class T, int L, int Pair>
SPARSEGAN_INLINE void pack_planes(const Frame& f, int64_t plane, const LaneTile (&tile)[L], int64_t used, const IO* x,
                                  T* panel) {
  const auto column = lanes<T, L>([](int i) { return i; });
  using Int = typename IntOf<sizeof(T)>::type;
  const Plane p = plane_of(f, plane);
  const int64_t cols_of[2] = {p.grid_cols, Pair == 2 ? f.grid_cols(1) : 0};
  Vec<T, L> v[Pair][L];
  for (int k = 0; k < Pair; ++k) {
    for (int64_t i = used; i < L; ++i) v[k][i] = Vec<T, L>{};
  }
  for (int64_t row = 0; row < f.rows; ++row) {
    for (int64_t c = 0; c < f.cols; c += L) {
      const int64_t n = smaller(L, f.cols - c);
      for (int64_t i = 0; i < used; ++i) {
        const int64_t at = tile[i].base + p.offset + row * f.row_stride + c * f.phases_w;
        const bool inside_rows = static_cast<uint64_t>(tile[i].row + row) < static_cast<uint64_t>(p.grid_rows);
        const bool whole = f.phases_w == Pair && at >= 0 && at + L * Pair <= f.size;
        Vec<T, L> raw[2];
        if (inside_rows && whole) {
          raw[0] = load_wide<IO, T, L>(x + at);
          if constexpr (Pair == 2) {
            const Vec<T, L> first = raw[0], second = load_wide<IO, T, L>(x + at + L);
            raw[0] = __builtin_shuffle(first, second, lanes<T, L>([](int k) { return 2 * k; }));
            raw[1] = __builtin_shuffle(first, second, lanes<T, L>([](int k) { return 2 * k + 1; }));
          }
        }
#pragma GCC unroll 2
        for (int k = 0; k < Pair; ++k) {
          const int64_t begin = larger(0, -tile[i].col - c), end = smaller(n, cols_of[k] - tile[i].col - c);
          if (!inside_rows) {
            v[k][i] = Vec<T, L>{};
          } else if (!whole) {  // the tensor's first and last elements, and wide strides
            v[k][i] = Vec<T, L>{};
            for (int64_t e = begin; e < end; ++e) v[k][i][e] = widen(x[at + k + e * f.phases_w]);
          } else if (begin > 0 || end < n) {
            const auto inside = (column >= static_cast<Int>(begin)) & (column < static_cast<Int>(end));
            v[k][i] = inside ? raw[k] : Vec<T, L>{};
          } else {
            v[k][i] = raw[k];
          }
        }
      }
#pragma GCC unroll 2
      for (int k = 0; k < Pair; ++k) {
        T* const out = panel + (((plane + k) * f.rows + row) * f.cols + c) * L;
        Vec<T, L> columns[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) columns[i] = v[k][i];
        transpose<T, L>(columns);
        if (n == L) {
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) store<T, L>(out + i * L, columns[i]);
        } else {
          for (int64_t i = 0; i < n; ++i) store<T, L>(out + i * L, columns[i]);
        }
      }
    }
  }
}

template <class IO, class T, int L>
void pack(const Frame& f, const Tiling& tiling, int64_t group, int64_t first, int64_t last, const void* tensor,
          void* panel) {
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(f, tiling, group, tile);
  const int64_t phases = f.phases_h * f.phases_w;
  const IO* const x = static_cast<const IO*>(tensor);
  T* const out = static_cast<T*>(panel);
  for (int64_t plane = first * phases; plane < last * phases;) {
    if (f.phases_w == 2) {
      pack_planes<IO, T, L, 2>(f, plane, tile, used, x, out);
      plane += 2;
    } else {
      pack_planes<IO, T, L, 1>(f, plane, tile, used, x, out);
      plane += 1;
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

// L columns from column c of a panel row, as one vector a tile.
template <class T, int L>
SPARSEGAN_INLINE void load_tiles(const T* in, int64_t n, Vec<T, L> (&tiles)[L]) {
  Vec<T, L> v[L];
  if (n == L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) v[i] = load<T, L>(in + i * L);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) v[i] = i < n ? load<T, L>(in + i * L) : Vec<T, L>{};
  }
  transpose<T, L>(v);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) tiles[i] = v[i];
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
  LaneTile tile[L];
  const int64_t used = lane_tiles<L>(f, tiling, group, tile);
  const int64_t phases = f.phases_h * f.phases_w;
  for (int64_t plane = first * phases; plane < last * phases; plane += pairs ? 2 : 1) {
    const Plane p = plane_of(f, plane);
    const int64_t second_cols = pairs ? f.grid_cols(1) : 0;
    for (int64_t row = 0; row < f.rows; ++row) {
      const T* const in = static_cast<const T*>(panel) + plane * plane_size + row * f.cols * L;
      for (int64_t c = 0; c < f.cols; c += L) {
        const int64_t n = smaller(L, f.cols - c);
        Vec<T, L> v[L], w[L];
        load_tiles<T, L>(in + c * L, n, v);
        if (pairs) load_tiles<T, L>(in + plane_size + c * L, n, w);
        for (int64_t i = 0; i < used; ++i) {
          const int64_t count = smaller(n, p.grid_cols - tile[i].col - c);
          if (tile[i].row + row >= p.grid_rows || count <= 0) continue;
          IO* const out = y + tile[i].base + p.offset + row * f.row_stride + c * f.phases_w;
          if (f.phases_w == 1) {
            store_some<IO, T, L>(out, v[i], count);
          } else if (pairs) {
            const int64_t both = count + smaller(n, second_cols - tile[i].col - c);
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
