// What tensors are stored as and what kernels compute with: float32, float16 or bfloat16, and float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace sparsegan::cuda {

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

// Two neighbours of a 16-bit type.
template <class T>
struct Pair;
template <>
struct Pair<__half> {
  using type = __half2;
  __device__ static float2 floats(__half2 pair) { return __half22float2(pair); }
  __device__ static __half2 pair(float x, float y) { return __floats2half2_rn(x, y); }
};
template <>
struct Pair<__nv_bfloat16> {
  using type = __nv_bfloat162;
  __device__ static float2 floats(__nv_bfloat162 pair) { return __bfloat1622float2(pair); }
  __device__ static __nv_bfloat162 pair(float x, float y) { return __floats2bfloat162_rn(x, y); }
};

template <class T>
struct alignas(8) TwoPairs {
  typename Pair<T>::type first, second;
};

// Four neighbours in one access; `at` is a multiple of four elements.
__device__ __forceinline__ void load_four(const float* at, float (&to)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(at);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}
template <class T>
__device__ __forceinline__ void load_four(const T* at, float (&to)[4]) {
  const TwoPairs<T> four = *reinterpret_cast<const TwoPairs<T>*>(at);
  const float2 first = Pair<T>::floats(four.first), second = Pair<T>::floats(four.second);
  to[0] = first.x, to[1] = first.y, to[2] = second.x, to[3] = second.y;
}
__device__ __forceinline__ void store_four(float* at, float a, float b, float c, float d) {
  *reinterpret_cast<float4*>(at) = make_float4(a, b, c, d);
}
template <class T>
__device__ __forceinline__ void store_four(T* at, float a, float b, float c, float d) {
  *reinterpret_cast<TwoPairs<T>*>(at) = {Pair<T>::pair(a, b), Pair<T>::pair(c, d)};
}

}  // namespace sparsegan::cuda
