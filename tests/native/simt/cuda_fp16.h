// Stands in for CUDA's header. Conversions to __half round to nearest even.
#pragma once

#include "cuda_runtime.h"

struct __half {
  unsigned short bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
inline __half __float2half(float number) {
  const unsigned bits = __float_as_uint(number), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  unsigned half;
  if (magnitude > 0x7f800000) {  // NaN
    half = 0x7fff;
  } else if (magnitude >= 0x477ff000) {  // 65520 or more: infinity
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // below 2^-14: steps of 2^-24, the same as those of floats from 0.5 to 1
    half = __float_as_uint(__uint_as_float(magnitude) + 0.5F) - __float_as_uint(0.5F);
  } else {
    half = (magnitude - (112U << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  return {static_cast<unsigned short>(sign | half)};
}
inline float __half2float(__half number) {
  const unsigned sign = (number.bits & 0x8000U) << 16, magnitude = (number.bits & 0x7fffU) << 13;
  const bool finite = magnitude < 0x7c00U << 13;
  const unsigned bits = finite ? __float_as_uint(__uint_as_float(magnitude) * 0x1p112F) : magnitude | 0x7f800000;
  return __uint_as_float(sign | bits);
}
inline __half __float2half_rn(float number) { return __float2half(number); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
