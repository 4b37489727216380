// LeakyReLU and the output activations of vectors. They use polynomials that were fitted for this project in float32,
// and the C library in float64, lane by lane. In float32 the error is at most 3 * 2^-23 of the result, for both forms
// of gelu of |x|; tests/test_fused.py checks this.
#pragma once

#include "kernels.h"
#include "vec.h"

extern "C" {
double tanh(double);
double exp(double);
double erfc(double);
double log1p(double);
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

// Returns x, but at least `least`. NaN stays NaN. The products x * f(x) below call it first: there, f of minus infinity
// is 0, and the product would be NaN.
template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> at_least(Vec<T, L> x, T least) {
  const auto limit = broadcast<T, L>(least);
  return x < limit ? limit : x;
}

template <int L>
SPARSEGAN_INLINE Vec<float, L> silu_of(Vec<float, L> x) {
  return at_least<float, L>(x, -86.0f) * sigmoid_of<L>(x);
}

// Returns x * erfc(-x / sqrt(2)) / 2. For z >= 0, erfc(z) is exp(-z^2) times a polynomial in 1 / (1 + p z), which is
// within 7e-8 of it; erfc(-z) is 2 - erfc(z).
template <int L>
SPARSEGAN_INLINE Vec<float, L> gelu_of(Vec<float, L> x) {
  constexpr float kCoefficients[] = {-2.20193142e-05f, 0.185445771f,  0.177768037f, 0.218209192f, -0.00548271043f,
                                     0.501186788f,     -0.450827897f, 0.519964516f, -0.146241695f};
  constexpr float kP = 0.3275911f, kHalfRoot = 0.707106781f, kFlat = 9.25f;
  const auto one = broadcast<float, L>(1.0f), z = up_to<L>(x * broadcast<float, L>(kHalfRoot), kFlat);
  const auto t = one / (one + z * broadcast<float, L>(kP));
  Vec<float, L> p = broadcast<float, L>(kCoefficients[8]);
#pragma GCC unroll 8
  for (int i = 7; i >= 0; --i) p = p * t + broadcast<float, L>(kCoefficients[i]);
  const auto tail = broadcast<float, L>(0.5f) * p * exponential<L>(-z * z);
  return at_least<float, L>(x, -2 * kFlat) * (x < Vec<float, L>{} ? tail : one - tail);
}

// Returns x * (1 + tanh(u)) / 2 = x * sigmoid(2 u) with u = sqrt(2 / pi) * (x + 0.044715 x^3).
template <int L>
SPARSEGAN_INLINE Vec<float, L> gelu_tanh_of(Vec<float, L> x) {
  constexpr float kOuter = 1.59576912f, kCube = 0.044715f * kOuter;
  const auto inner = x * (broadcast<float, L>(kOuter) + x * x * broadcast<float, L>(kCube));
  return at_least<float, L>(x, -16.0f) * sigmoid_of<L>(inner);
}

template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> hardswish_of(Vec<T, L> x) {
  const Vec<T, L> from = at_least<T, L>(x, T(-3)), six = broadcast<T, L>(T(6)), up = from + broadcast<T, L>(T(3));
  return from * ((up > six ? six : up) / six);
}

// Returns max(x, 0) + log(1 + e) with e = exp(-|x|). The logarithm is 2 artanh(s) with s = e / (2 + e).
template <int L>
SPARSEGAN_INLINE Vec<float, L> softplus_of(Vec<float, L> x) {
  constexpr float kCoefficients[] = {0.333333194f, 0.200037912f, 0.141179115f, 0.134285152f};
  const auto e = exponential<L>(-up_to<L>(x, 86.0f)), s = e / (broadcast<float, L>(2.0f) + e), square = s * s;
  Vec<float, L> p = broadcast<float, L>(kCoefficients[3]);
#pragma GCC unroll 4
  for (int i = 2; i >= 0; --i) p = p * square + broadcast<float, L>(kCoefficients[i]);
  return at_least<float, L>(x, 0.0f) + broadcast<float, L>(2.0f) * (s + s * square * p);
}

// One element in float64. Like torch, softplus returns x itself above 20.
SPARSEGAN_INLINE double activated(double x, OutputActivation activation) {
  constexpr double kHalfRoot = 0.70710678118654752, kOuter = 1.5957691216057308;
  const double flat = x < -700 ? -700 : x;  // see at_least
  switch (activation) {
    case OutputActivation::tanh:
      return ::tanh(x);
    case OutputActivation::sigmoid:
      return 1 / (1 + ::exp(-x));
    case OutputActivation::silu:
      return flat / (1 + ::exp(-flat));
    case OutputActivation::gelu:
      return 0.5 * flat * ::erfc(-flat * kHalfRoot);
    case OutputActivation::gelu_tanh:
      return flat / (1 + ::exp(-kOuter * (flat + 0.044715 * flat * flat * flat)));
    case OutputActivation::softplus:
      return x > 20 ? x : (x > 0 ? x : 0) + ::log1p(::exp(x > 0 ? -x : x));
    default:
      return x;
  }
}

template <class T, int L>
SPARSEGAN_INLINE Vec<T, L> output_activation(Vec<T, L> x, OutputActivation activation) {
  if (activation == OutputActivation::none) return x;
  if (activation == OutputActivation::hardswish) return hardswish_of<T, L>(x);
  if constexpr (sizeof(T) == sizeof(float)) {
    switch (activation) {
      case OutputActivation::tanh:
        return tanh_of<L>(x);
      case OutputActivation::sigmoid:
        return sigmoid_of<L>(x);
      case OutputActivation::silu:
        return silu_of<L>(x);
      case OutputActivation::gelu:
        return gelu_of<L>(x);
      case OutputActivation::gelu_tanh:
        return gelu_tanh_of<L>(x);
      default:
        return softplus_of<L>(x);
    }
  } else {
    for (int i = 0; i < L; ++i) x[i] = activated(x[i], activation);
    return x;
  }
}

}  // namespace sparsegan::SPARSEGAN_ISA
