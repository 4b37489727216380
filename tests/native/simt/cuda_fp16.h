// Stands in for CUDA's header: __half, rounded to nearest even.
#pragma once

#include "cuda_runtime.h"

struct __half {
  _Float16 number;
};
struct alignas(4) __half2 {
  __half x, y;
};
inline __half __float2half(float number) { return {static_cast<_Float16>(number)}; }
inline __half __float2half_rn(float number) { return __float2half(number); }
inline float __half2float(__half number) { return static_cast<float>(number.number); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
