// A vector of L lanes as the compiler's own vector type: one source for every ISA. Wider than the machine is legal and
// correct, so the portable build runs the same 16-lane code as AVX-512 does.
//
// This header is compiled once an ISA with that ISA's flags. Everything lives in a namespace of its own (SPARSEGAN_ISA)
// and no std:: function is called: an inline function shared between builds could otherwise be linked in its AVX-512
// form everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace sparsegan::SPARSEGAN_ISA {

template <class T, int L>
struct VecOf {
  typedef T type __attribute__((vector_size(sizeof(T) * L)));
};
template <class T, int L>
using Vec = typename VecOf<T, L>::type;

template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> load(const T* p) {
  return *reinterpret_cast<const Vec<T, L>*>(p);
}

// Loaded once and kept in a register, where the compiler would make it a memory operand of each instruction that uses
// it.
template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> load_once(const T* p) {
  return *reinterpret_cast<const volatile Vec<T, L>*>(p);
}

template <class T, int L>
SPARSEGAN_INLINE void store(T* p, Vec<T, L> v) {
  *reinterpret_cast<Vec<T, L>*>(p) = v;
}

template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> broadcast(T x) {
  return x - Vec<T, L>{};  // compiles to one broadcast; x - 0 keeps the sign of zero, x + 0 would not
}

template <size_t Bytes>
struct IntOf;
template <>
struct IntOf<4> {
  using type = int32_t;
};
template <>
struct IntOf<8> {
  using type = int64_t;
};

// Lane numbers 0 .. L-1 mapped by F, as a shuffle mask.
template <class T, int L, class F>
SPARSEGAN_INLINE auto lanes(F f) {
  Vec<typename IntOf<sizeof(T)>::type, L> m;
  for (int i = 0; i < L; ++i) m[i] = f(i);
  return m;
}

// Sum of the lanes, pairwise: halves are folded onto each other, so the rounding does not depend on the ISA's own
// reduction.
template <class T, int L>
SPARSEGAN_INLINE T sum(Vec<T, L> v) {
#pragma GCC unroll 8
  for (int half = L / 2; half > 0; half /= 2) {
    v += __builtin_shuffle(v, lanes<T, L>([half](int i) { return (i + half) % L; }));
  }
  return v[0];
}

// Lane k of the result is the sum of v[k]'s lanes, for the first N of them; N rows are folded onto each other at once,
// which takes a third of the shuffles of N separate sums.
template <class T, int L, int N, int Block = N / 2>
SPARSEGAN_INLINE Vec<T, L> sum_each(Vec<T, L> (&v)[N]) {
  if constexpr (Block > 0) {
    const auto low = lanes<T, L>([](int i) { return (i & Block) ? L + i - Block : i; });
    const auto high = lanes<T, L>([](int i) { return (i & Block) ? L + i : i + Block; });
#pragma GCC unroll 16
    for (int i = 0; i < Block; ++i) {
      v[i] = __builtin_shuffle(v[i], v[i + Block], low) + __builtin_shuffle(v[i], v[i + Block], high);
    }
    return sum_each<T, L, N, Block / 2>(v);
  } else {
    Vec<T, L> total = v[0];
#pragma GCC unroll 4
    for (int half = L / 2; half >= N; half /= 2) {
      total += __builtin_shuffle(total, lanes<T, L>([half](int i) { return (i + half) % L; }));
    }
    return total;
  }
}

// Exchanges the off-diagonal blocks of pairs of rows, from L / 2 lanes down to `Least`.
template <class T, int L, int Least, int Block = L / 2>
SPARSEGAN_INLINE void exchange_blocks(Vec<T, L> (&rows)[L]) {
  if constexpr (Block >= Least) {
    const auto low = lanes<T, L>([](int i) { return (i & Block) ? L + i - Block : i; });
    const auto high = lanes<T, L>([](int i) { return (i & Block) ? L + i : i + Block; });
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if ((i & Block) == 0) {
        const Vec<T, L> a = rows[i], b = rows[i | Block];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i | Block] = __builtin_shuffle(a, b, high);
      }
    }
    exchange_blocks<T, L, Least, Block / 2>(rows);
  }
}

// One round of interleaving inside each 16-byte piece: as many rounds as a piece has bits of lane number transpose it.
template <class T, int L, int Piece, int Rounds>
SPARSEGAN_INLINE void interleave_pieces(Vec<T, L> (&rows)[L]) {
  if constexpr (Rounds > 1) {
    const auto low = lanes<T, L>([](int i) { return i / Piece * Piece + i % Piece / 2 + i % 2 * L; });
    const auto high = lanes<T, L>([](int i) { return i / Piece * Piece + Piece / 2 + i % Piece / 2 + i % 2 * L; });
    Vec<T, L> next[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const int block = i / Piece * Piece, k = i % Piece;
      if (k < Piece / 2) {
        const Vec<T, L> a = rows[block + k], b = rows[block + k + Piece / 2];
        next[block + 2 * k] = __builtin_shuffle(a, b, low);
        next[block + 2 * k + 1] = __builtin_shuffle(a, b, high);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) rows[i] = next[i];
    interleave_pieces<T, L, Piece, Rounds / 2>(rows);
  }
}

// Transposes L x L in registers with one instruction a row and round: 16-byte pieces by interleaving, which is one
// instruction there, then whole pieces exchanged.
template <class T, int L>
SPARSEGAN_INLINE void transpose(Vec<T, L> (&rows)[L]) {
  constexpr int kPiece = 16 / sizeof(T) < L ? 16 / sizeof(T) : L;
  interleave_pieces<T, L, kPiece, kPiece>(rows);
  exchange_blocks<T, L, kPiece>(rows);
}

// bfloat16 is the upper half of a float32; rounding is to nearest even, NaN stays NaN.
struct bf16 {
  uint16_t bits;
};

template <class T>
SPARSEGAN_INLINE T widen(T x) {
  return x;
}
SPARSEGAN_INLINE float widen(bf16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }

template <class IO>
struct Narrow {
  static SPARSEGAN_INLINE IO from(IO x) { return x; }
};
template <>
struct Narrow<bf16> {
  static SPARSEGAN_INLINE bf16 from(float x) {
    const uint32_t u = __builtin_bit_cast(uint32_t, x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
    return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
  }
};

// Unaligned vectors of a tensor's elements, widened or narrowed to them.
template <class IO, class T, int L>
SPARSEGAN_INLINE Vec<T, L> load_wide(const IO* p) {
  if constexpr (sizeof(IO) == sizeof(T)) {
    Vec<T, L> v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  } else {
    Vec<uint16_t, L> v;
    __builtin_memcpy(&v, p, sizeof(v));
    return reinterpret_cast<Vec<T, L>>(__builtin_convertvector(v, Vec<uint32_t, L>) << 16);
  }
}

template <class IO, class T, int L>
SPARSEGAN_INLINE void store_narrow(IO* p, Vec<T, L> v) {
  if constexpr (sizeof(IO) == sizeof(T)) {
    __builtin_memcpy(p, &v, sizeof(v));
  } else {
    for (int i = 0; i < L; ++i) p[i] = Narrow<IO>::from(v[i]);
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
