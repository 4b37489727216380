// Conversions between the dtypes of tensors (float32, float16, bfloat16) and float, in which kernels compute.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "dtypes.h"

namespace sparsegan::cuda {

// Calls `body` with a zero of the element type of `dtype`.
template <class Body>
void with_type(DType dtype, const Body& body) {
  switch (dtype) {
#define SPARSEGAN_CASE(name, scalar_type, type, bytes) \
  case DType::name:                                    \
    return body(type());
    SPARSEGAN_CUDA_DTYPES(SPARSEGAN_CASE)
#undef SPARSEGAN_CASE
  }
}

__device__ __forceinline__ float to_float(float number) { return number; }
__device__ __forceinline__ float to_float(__half number) { return __half2float(number); }
__device__ __forceinline__ float to_float(__nv_bfloat16 number) { return __bfloat162float(number); }

template <class T>
__device__ __forceinline__ T from_float(float number);
template <>
__device__ __forceinline__ float from_float<float>(float number) {
  return number;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float number) {
  return __float2half_rn(number);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float number) {
  return __float2bfloat16_rn(number);
}

// Two neighbouring elements of a 16-bit type.
__device__ __forceinline__ float2 to_floats(__half2 pair) { return __half22float2(pair); }
__device__ __forceinline__ float2 to_floats(__nv_bfloat162 pair) { return __bfloat1622float2(pair); }
template <class T>
struct PairOf;
template <>
struct PairOf<__half> {
  using type = __half2;
  __device__ static __half2 from(float x, float y) { return __floats2half2_rn(x, y); }
};
template <>
struct PairOf<__nv_bfloat16> {
  using type = __nv_bfloat162;
  __device__ static __nv_bfloat162 from(float x, float y) { return __floats2bfloat162_rn(x, y); }
};

// Four neighbouring elements in one access. `at` is aligned to four elements.
__device__ __forceinline__ void load_four(const float* at, float (&to)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(at);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}
template <class T>
__device__ __forceinline__ void load_four(const T* at, float (&to)[4]) {
  using Pair = typename PairOf<T>::type;
  const uint2 four = *reinterpret_cast<const uint2*>(at);  // a struct of two pairs would take two accesses
  const float2 first = to_floats(reinterpret_cast<const Pair&>(four.x));
  const float2 second = to_floats(reinterpret_cast<const Pair&>(four.y));
  to[0] = first.x, to[1] = first.y, to[2] = second.x, to[3] = second.y;
}
__device__ __forceinline__ void store_four(float* at, float a, float b, float c, float d) {
  *reinterpret_cast<float4*>(at) = make_float4(a, b, c, d);
}
template <class T>
__device__ __forceinline__ void store_four(T* at, float a, float b, float c, float d) {
  const auto first = PairOf<T>::from(a, b), second = PairOf<T>::from(c, d);
  *reinterpret_cast<uint2*>(at) =
      make_uint2(reinterpret_cast<const unsigned&>(first), reinterpret_cast<const unsigned&>(second));
}

}  // namespace sparsegan::cuda
