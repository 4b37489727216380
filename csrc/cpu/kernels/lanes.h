// The lanes of a panel of x: how many source channels a lane holds, how they get there, and how they are multiplied.
//
// In a short precision a lane holds 2 or 4 neighbouring source channels in 32 bits, and so does a value. The loop over
// the taps is the same for all lanes: load a vector, broadcast the 32 bits of a value, multiply and add.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

// One source channel. The members of every lane type:
//   Real       type of the elements before they are rounded
//   X, Sum     types of an element of a panel of x, which is also that of a value, and of a sum
//   kChannels  source channels per lane
//   kIntegers  whether sums are integers
//   kScratch   registers that `add` takes, besides the value's
//   native     whether the ISA has an instruction for `add` with L lanes
template <class T>
struct Single {
  using Real = T;
  using X = T;
  using Sum = T;
  static constexpr int kChannels = 1, kScratch = 0;
  static constexpr bool kIntegers = false;
  template <int L>
  static constexpr bool native = true;

  // Joins one element of each channel, as `channel(c)` gives it.
  template <int L, class F>
  static SPARSEGAN_INLINE Vec<T, L> join(const F& channel, const InputTransform&) {
    return channel(0);
  }
  // The lanes as they lie in the panel. Lanes outside the tensor are 0 before.
  template <int L>
  static SPARSEGAN_INLINE Vec<T, L> stored(Vec<T, L> x) {
    return x;
  }
  template <int L>
  static SPARSEGAN_INLINE void add(Vec<T, L>& sum, Vec<T, L> value, Vec<T, L> x) {
    sum += value * x;
  }
};

// Returns x * to_integer, rounded to nearest, in the lowest bits of each lane. `most` is below 2^22. The sum with 1.5 *
// 2^23 has no fraction bits, and its lowest bits are those of the integer. A NaN becomes `most`: its own bits could be
// any integer, and the sums would leave 32 bits.
template <int L>
SPARSEGAN_INLINE Vec<int32_t, L> rounded(Vec<float, L> x, const InputTransform& p) {
  const Vec<float, L> most = broadcast<float, L>(p.most), z = x * broadcast<float, L>(p.to_integer);
  const Vec<float, L> below = z < most ? z : most, inside = below > -most ? below : -most;
  return reinterpret_cast<Vec<int32_t, L>>(inside + broadcast<float, L>(12582912.0f));
}

// The instructions of the ISA: lanes of its products of 16-bit pairs; products of bytes that add to a sum; products of
// bfloat16.
#if defined(__AVX512BW__)
constexpr int kPairs = 16;
#elif defined(__AVX2__)
constexpr int kPairs = 8;
#else
constexpr int kPairs = 0;
#endif
#if defined(__AVX512VNNI__)
constexpr bool kVnni = true;
#else
constexpr bool kVnni = false;
#endif
#if defined(__AVX512BF16__)
constexpr bool kBf16 = true;
#else
constexpr bool kBf16 = false;
#endif

// Adds to each lane of `sum` the two products of 16-bit integers in that lane of a and b.
template <int L>
SPARSEGAN_INLINE void add_pairs(Vec<int32_t, L>& sum, Vec<int32_t, L> a, Vec<int32_t, L> b) {
#if defined(__AVX512VNNI__)
  if constexpr (L == 16) {
    sum = reinterpret_cast<Vec<int32_t, L>>(_mm512_dpwssd_epi32(
        reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
    return;
  }
#elif defined(__AVX512BW__)
  if constexpr (L == 16) {
    sum += reinterpret_cast<Vec<int32_t, L>>(
        _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
    return;
  }
#elif defined(__AVX2__)
  if constexpr (L == 8) {
    sum += reinterpret_cast<Vec<int32_t, L>>(
        _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
    return;
  }
#endif
  sum += (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
}

// Several source channels in 32 bits.
struct Packed {
  using Real = float;
  using X = int32_t;
  template <int L>
  static SPARSEGAN_INLINE Vec<X, L> stored(Vec<X, L> x) {
    return x;
  }
};

struct Int16Pair : Packed {
  using Sum = int32_t;
  static constexpr int kChannels = 2, kScratch = kVnni ? 0 : 1;
  static constexpr bool kIntegers = true;
  template <int L>
  static constexpr bool native = kPairs == L;

  template <int L, class F>
  static SPARSEGAN_INLINE Vec<X, L> join(const F& channel, const InputTransform& p) {
    const Vec<X, L> low = rounded<L>(channel(0), p), high = rounded<L>(channel(1), p);
    return (low & 0xffff) | (high << 16);
  }
  template <int L>
  static SPARSEGAN_INLINE void add(Vec<Sum, L>& sum, Vec<X, L> value, Vec<X, L> x) {
    add_pairs<L>(sum, value, x);
  }
};

struct Bf16Pair : Packed {
  using Sum = float;
  static constexpr int kChannels = 2, kScratch = 0;
  static constexpr bool kIntegers = false;
  template <int L>
  static constexpr bool native = kBf16 && L == 16;

  template <int L, class F>
  static SPARSEGAN_INLINE Vec<X, L> join(const F& channel, const InputTransform&) {
    return ((narrow<L>(channel(0)) >> 16) & 0xffff) | (narrow<L>(channel(1)) & ~0xffff);
  }
  template <int L>
  static SPARSEGAN_INLINE void add(Vec<Sum, L>& sum, Vec<X, L> value, Vec<X, L> x) {
#if defined(__AVX512BF16__)
    if constexpr (L == 16) {
      sum = reinterpret_cast<Vec<Sum, L>>(_mm512_dpbf16_ps(
          reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(value), reinterpret_cast<__m512bh>(x)));
      return;
    }
#endif
    sum += reinterpret_cast<Vec<Sum, L>>(value << 16) * reinterpret_cast<Vec<Sum, L>>(x << 16);
    sum += reinterpret_cast<Vec<Sum, L>>(value & ~0xffff) * reinterpret_cast<Vec<Sum, L>>(x & ~0xffff);
  }

 private:
  // Rounds to the nearest bfloat16, ties to even, in the upper half of each lane. NaN stays NaN.
  template <int L>
  static SPARSEGAN_INLINE Vec<X, L> narrow(Vec<float, L> x) {
    const Vec<uint32_t, L> u = reinterpret_cast<Vec<uint32_t, L>>(x);
    const Vec<uint32_t, L> round = u + 0x7fffu + ((u >> 16) & 1u);
    return reinterpret_cast<Vec<X, L>>((u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : round);
  }
};

// The panel holds x + 128, because the instructions multiply unsigned by signed bytes. The sums without taps are -128
// times the sum of the weights.
struct Int8Quad : Packed {
  using Sum = int32_t;
  static constexpr int kChannels = 4, kScratch = 0;
  static constexpr bool kIntegers = true;
  template <int L>
  static constexpr bool native = kVnni && L == 16;

  template <int L, class F>
  static SPARSEGAN_INLINE Vec<X, L> join(const F& channel, const InputTransform& p) {
    const Vec<X, L> a = rounded<L>(channel(0), p), b = rounded<L>(channel(1), p);
    const Vec<X, L> c = rounded<L>(channel(2), p), d = rounded<L>(channel(3), p);
    return (a & 0xff) | ((b & 0xff) << 8) | ((c & 0xff) << 16) | (d << 24);
  }
  template <int L>
  static SPARSEGAN_INLINE Vec<X, L> stored(Vec<X, L> x) {
    return x ^ static_cast<int32_t>(0x80808080u);
  }
  // Without VNNI, the even bytes and the odd bytes are multiplied as 16-bit integers.
  template <int L>
  static SPARSEGAN_INLINE void add(Vec<Sum, L>& sum, Vec<X, L> value, Vec<X, L> x) {
#if defined(__AVX512VNNI__)
    if constexpr (L == 16) {
      sum = reinterpret_cast<Vec<Sum, L>>(_mm512_dpbusd_epi32(
          reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(value)));
      return;
    }
#endif
    using Shorts = Vec<int16_t, 2 * L>;
    const Shorts w = reinterpret_cast<Shorts>(value);
    const auto u = reinterpret_cast<Vec<uint16_t, 2 * L>>(x);
    add_pairs<L>(sum, reinterpret_cast<Vec<X, L>>(w << 8 >> 8), x & 0xff00ff);
    add_pairs<L>(sum, reinterpret_cast<Vec<X, L>>(w >> 8), reinterpret_cast<Vec<X, L>>(u >> 8));
  }
};

}  // namespace sparsegan::SPARSEGAN_ISA
