// Vectors of L lanes as the compiler's vector type, so that one source serves every ISA. A vector may be wider than the
// machine's registers. The portable build therefore runs the same 16-lane code as AVX-512.
//
// This header is compiled once per ISA with the flags of the ISA. All code is in a namespace named after the ISA
// (SPARSEGAN_ISA), and no std:: function is called. Otherwise the linker could take the AVX-512 copy of an inline
// function for all ISAs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels.h"

namespace sparsegan::SPARSEGAN_ISA {

SPARSEGAN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SPARSEGAN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
SPARSEGAN_INLINE int64_t clamp(int64_t a, int64_t least, int64_t most) { return smaller(larger(a, least), most); }

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

// Loads a vector once and keeps it in a register. Without volatile, the compiler would make the vector a memory operand
// of each instruction that uses it.
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

// Returns v in the lanes where `in` is set, else 0.
template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> where(Vec<typename IntOf<sizeof(T)>::type, L> in, Vec<T, L> v) {
  return reinterpret_cast<Vec<T, L>>(reinterpret_cast<Vec<typename IntOf<sizeof(T)>::type, L>>(v) & in);
}

// Lane i of the result is lane F{}(i) of a and b, whose lanes are numbered 0 .. 2L - 1. F must have no state, because
// the lane numbers must be constants.
template <class T, int L, class F, int... I>
SPARSEGAN_INLINE Vec<T, L> shuffle_lanes(Vec<T, L> a, Vec<T, L> b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, F{}(I)...);
#else
  return __builtin_shuffle(a, b, Vec<typename IntOf<sizeof(T)>::type, L>{F{}(I)...});
#endif
}
template <class T, int L, class F>
SPARSEGAN_INLINE Vec<T, L> shuffle(Vec<T, L> a, Vec<T, L> b, F) {
  return shuffle_lanes<T, L, F>(a, b, std::make_integer_sequence<int, L>{});
}

// Folds v to N lanes: lane i of the result is the sum of the lanes j of v with j % N == i % N. Each step adds to v its
// lanes rotated by `Half`.
template <class T, int L, int N, int Half = L / 2>
SPARSEGAN_INLINE Vec<T, L> fold(Vec<T, L> v) {
  if constexpr (Half >= N) {
    v += shuffle<T, L>(v, v, [](int i) { return (i + Half) % L; });
    return fold<T, L, N, Half / 2>(v);
  } else {
    return v;
  }
}

// Returns the sum of the lanes. The lanes are added pairwise, so that the rounding does not depend on the reduction
// instructions of the ISA.
template <class T, int L>
SPARSEGAN_INLINE T sum(Vec<T, L> v) {
  return fold<T, L, 1>(v)[0];
}

// The lane numbers for `shuffle` that exchange the off-diagonal blocks of two rows: `low` gives the new first row,
// `high` the new second row.
template <int L, int Block>
struct Exchanged {
  static constexpr auto low = [](int i) { return (i & Block) ? L + i - Block : i; };
  static constexpr auto high = [](int i) { return (i & Block) ? L + i : i + Block; };
};

// Lane k of the result, for k < N, is the sum of the lanes of v[k]. Folding the N vectors onto each other at once takes
// a third of the shuffles of N separate sums.
template <class T, int L, int N, int Block = N / 2>
SPARSEGAN_INLINE Vec<T, L> sum_each(Vec<T, L> (&v)[N]) {
  if constexpr (Block > 0) {
    using Lanes = Exchanged<L, Block>;
#pragma GCC unroll 16
    for (int i = 0; i < Block; ++i) {
      v[i] = shuffle<T, L>(v[i], v[i + Block], Lanes::low) + shuffle<T, L>(v[i], v[i + Block], Lanes::high);
    }
    return sum_each<T, L, N, Block / 2>(v);
  } else {
    return fold<T, L, N>(v[0]);
  }
}

// Exchanges the off-diagonal blocks of pairs of rows: first blocks of L / 2 lanes, last blocks of `Least` lanes.
template <class T, int L, int Least, int Block = L / 2>
SPARSEGAN_INLINE void exchange_blocks(Vec<T, L> (&rows)[L]) {
  if constexpr (Block >= Least) {
    using Lanes = Exchanged<L, Block>;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if ((i & Block) == 0) {
        const Vec<T, L> a = rows[i], b = rows[i | Block];
        rows[i] = shuffle<T, L>(a, b, Lanes::low);
        rows[i | Block] = shuffle<T, L>(a, b, Lanes::high);
      }
    }
    exchange_blocks<T, L, Least, Block / 2>(rows);
  }
}

// Transposes each 16-byte piece of `Piece` lanes by log2(Piece) rounds of interleaving. `Rounds` begins as Piece and is
// halved by each round.
template <class T, int L, int Piece, int Rounds>
SPARSEGAN_INLINE void interleave_pieces(Vec<T, L> (&rows)[L]) {
  if constexpr (Rounds > 1) {
    const auto low = [](int i) { return i / Piece * Piece + i % Piece / 2 + i % 2 * L; };
    const auto high = [](int i) { return i / Piece * Piece + Piece / 2 + i % Piece / 2 + i % 2 * L; };
    Vec<T, L> next[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const int block = i / Piece * Piece, k = i % Piece;
      if (k < Piece / 2) {
        const Vec<T, L> a = rows[block + k], b = rows[block + k + Piece / 2];
        next[block + 2 * k] = shuffle<T, L>(a, b, low);
        next[block + 2 * k + 1] = shuffle<T, L>(a, b, high);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) rows[i] = next[i];
    interleave_pieces<T, L, Piece, Rounds / 2>(rows);
  }
}

// Transposes L x L elements in registers with one instruction per row and round. First each 16-byte piece is transposed
// by interleaving, which is a single instruction inside 16 bytes. Then whole pieces are exchanged.
template <class T, int L>
SPARSEGAN_INLINE void transpose(Vec<T, L> (&rows)[L]) {
  constexpr int kPiece = 16 / sizeof(T) < L ? 16 / sizeof(T) : L;
  interleave_pieces<T, L, kPiece, kPiece>(rows);
  exchange_blocks<T, L, kPiece>(rows);
}

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
  // Rounds to nearest, ties to even. NaN stays NaN.
  static SPARSEGAN_INLINE bf16 from(float x) {
    const uint32_t u = __builtin_bit_cast(uint32_t, x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
    return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
  }
};

// Load and store L elements of a tensor at an unaligned address, converted from and to the type T of the panel.
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

// Stores the first n lanes of v at p. Fewer than L lanes are stored four by four, then one by one.
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

}  // namespace sparsegan::SPARSEGAN_ISA
