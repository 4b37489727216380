// LeakyReLU, tanh and sigmoid of vectors. Tanh and sigmoid use polynomials that were fitted for this project in
// float32, and the C library in float64, lane by lane.
#pragma once

#include "kernels.h"
#include "vec.h"

extern "C" {
double tanh(double);
double exp(double);
}

namespace sparsegan::SPARSEGAN_ISA {

// Returns z where z is above 0, else slope * z. NaN stays NaN; with slope 0, minus infinity gives 0.
template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> leaky_relu(Vec<T, L> z, T slope) {
  const Vec<T, L> zero = {}, scaled = slope == T(0) ? zero : z * broadcast<T, L>(slope);
  return z <= zero ? scaled : z;
}

// Returns e^x for x from -87 to 87, as 2^n e^r with r from -ln 2 / 2 to ln 2 / 2. ln 2 is the sum of two constants, and
// n times the first constant is exact. The polynomial is within 2e-9 of e^r.
template <int L>
SPARSEGAN_INLINE Vec<float, L> exponential(Vec<float, L> x) {
  constexpr float kCoefficients[] = {1.0f,          1.00000004f,    0.499999921f,  0.166664202f,
                                     0.0416682258f, 0.00837481574f, 0.00138368338f};
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.69140625f, kLn2Low = 0.00174093056f;
  constexpr float kInteger = 12582912.0f;  // floats of this size are integers, so that adding it rounds to an integer
  const auto integer = broadcast<float, L>(kInteger);
  const auto n = (x * broadcast<float, L>(kLog2E) + integer) - integer;
  const auto r = (x - n * broadcast<float, L>(kLn2High)) - n * broadcast<float, L>(kLn2Low);
  Vec<float, L> p = broadcast<float, L>(kCoefficients[6]);
#pragma GCC unroll 8
  for (int i = 5; i >= 0; --i) p = p * r + broadcast<float, L>(kCoefficients[i]);
  const auto bits = __builtin_convertvector(n, Vec<int32_t, L>) << 23;
  return reinterpret_cast<Vec<float, L>>(reinterpret_cast<Vec<int32_t, L>>(p) + bits);
}

template <int L>
SPARSEGAN_INLINE Vec<float, L> magnitude(Vec<float, L> x) {
  return reinterpret_cast<Vec<float, L>>(reinterpret_cast<Vec<int32_t, L>>(x) & 0x7fffffff);
}

// Returns |x|, but at most `most`, beyond which tanh and sigmoid are taken to be constant.
template <int L>
SPARSEGAN_INLINE Vec<float, L> up_to(Vec<float, L> x, float most) {
  const Vec<float, L> size = magnitude<L>(x), limit = broadcast<float, L>(most);
  return size > limit ? limit : size;
}

// Returns tanh(x) as (1 - e) / (1 + e) with e = exp(-2 |x|) and the sign of x. Near 0, 1 - e would cancel; there, tanh
// is |x| + |x|^3 times a polynomial in x^2.
template <int L>
SPARSEGAN_INLINE Vec<float, L> tanh_of(Vec<float, L> x) {
  constexpr float kCoefficients[] = {-0.333332839f, 0.133314912f, -0.053743489f, 0.0206505608f, -0.00571701797f};
  constexpr float kNear = 0.625f, kFlat = 10.0f;
  const auto one = broadcast<float, L>(1.0f), size = up_to<L>(x, kFlat), square = size * size;
  const auto e = exponential<L>(size * broadcast<float, L>(-2.0f));
  Vec<float, L> p = broadcast<float, L>(kCoefficients[4]);
#pragma GCC unroll 4
  for (int i = 3; i >= 0; --i) p = p * square + broadcast<float, L>(kCoefficients[i]);
  const auto near = size + size * square * p, far = (one - e) / (one + e);
  const auto y = size < broadcast<float, L>(kNear) ? near : far;
  const auto sign = reinterpret_cast<Vec<int32_t, L>>(x) ^ reinterpret_cast<Vec<int32_t, L>>(magnitude<L>(x));
  const auto with_sign = reinterpret_cast<Vec<float, L>>(reinterpret_cast<Vec<int32_t, L>>(y) | sign);
  return x == x ? with_sign : x;  // NaN stays NaN
}

// Returns the sigmoid of x as 1 / (1 + e) or, below 0, e / (1 + e), with e = exp(-|x|). Neither form cancels.
template <int L>
SPARSEGAN_INLINE Vec<float, L> sigmoid_of(Vec<float, L> x) {
  constexpr float kFlat = 86.0f;
  const auto one = broadcast<float, L>(1.0f);
  const auto e = exponential<L>(-up_to<L>(x, kFlat)), upper = one / (one + e);
  const auto y = x < Vec<float, L>{} ? e * upper : upper;
  return x == x ? y : x;
}

template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> output_activation(Vec<T, L> x, OutputActivation activation) {
  if (activation == OutputActivation::none) return x;
  if constexpr (sizeof(T) == sizeof(float)) {
    return activation == OutputActivation::tanh ? tanh_of<L>(x) : sigmoid_of<L>(x);
  } else {
    for (int i = 0; i < L; ++i) x[i] = activation == OutputActivation::tanh ? ::tanh(x[i]) : 1 / (1 + ::exp(-x[i]));
    return x;
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
