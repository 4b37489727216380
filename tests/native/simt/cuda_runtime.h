// Stands in for CUDA's header when kernels are compiled for the SIMT executor: the part of it that they use.
#pragma once

#include <cmath>
#include <type_traits>

#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx simt::thread_index()
#define blockIdx simt::block_index()
#define blockDim simt::block_size()
#define gridDim simt::grid_size()
constexpr int warpSize = 32;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  operator simt::Index() const { return {x, y, z}; }
};

// ---------------------------------------------------------------- vectors

#define SIMT_VECTORS(scalar, name, size)                               \
  struct alignas(size) name##2 { scalar x, y; };                       \
  struct alignas(2 * size) name##4 { scalar x, y, z, w; };             \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
SIMT_VECTORS(float, float, 8)
SIMT_VECTORS(int, int, 8)
SIMT_VECTORS(unsigned, uint, 8)
SIMT_VECTORS(short, short, 4)
SIMT_VECTORS(unsigned short, ushort, 4)
SIMT_VECTORS(unsigned char, uchar, 2)
#undef SIMT_VECTORS

// ---------------------------------------------------------------- arithmetic

template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
inline int __float_as_int(float number) { return __builtin_bit_cast(int, number); }
inline float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
inline unsigned __float_as_uint(float number) { return __builtin_bit_cast(unsigned, number); }
template <class T>
inline T __ldg(const T* address) {
  return *address;
}

// ---------------------------------------------------------------- barriers, shuffles, votes

inline void __syncthreads(SIMT_SITE) { simt::block_barrier({file, line}); }
inline void __syncwarp(unsigned mask = ~0U, SIMT_SITE) {
  simt::warp_collective("__syncwarp", mask, 0, simt::every_lane, {file, line});
}

// `width` splits the warp into sections; a lane whose source is outside its section gets its own value.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_SITE) {
  const unsigned section = simt::lane() & ~static_cast<unsigned>(width - 1);
  return simt::shuffle("__shfl_sync", mask, value, section + (static_cast<unsigned>(source) & (width - 1)),
                       {file, line});
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  const unsigned lane = simt::lane(), end = (lane | (width - 1)) + 1;
  return simt::shuffle("__shfl_down_sync", mask, value, lane + delta < end ? lane + delta : lane, {file, line});
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  const unsigned lane = simt::lane(), position = lane & (width - 1);
  return simt::shuffle("__shfl_up_sync", mask, value, position >= delta ? lane - delta : lane, {file, line});
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_SITE) {
  const unsigned lane = simt::lane(), source = lane ^ static_cast<unsigned>(bits);
  return simt::shuffle("__shfl_xor_sync", mask, value, source <= (lane | (width - 1)) ? source : lane, {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int vote, SIMT_SITE) {
  const uint64_t bit = vote != 0 ? uint64_t{1} << simt::lane() : 0;
  return static_cast<unsigned>(simt::warp_collective("__ballot_sync", mask, bit, simt::every_lane, {file, line}));
}
inline int __any_sync(unsigned mask, int vote, SIMT_SITE) {
  return simt::warp_collective("__any_sync", mask, vote != 0, simt::every_lane, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int vote, SIMT_SITE) {
  return simt::warp_collective("__all_sync", mask, vote == 0, simt::every_lane, {file, line}) == 0;
}

// ---------------------------------------------------------------- the host's part

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline cudaError_t cudaGetLastError() { return simt::error() == nullptr ? cudaSuccess : cudaErrorInvalidValue; }
inline cudaError_t cudaPeekAtLastError() { return cudaGetLastError(); }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : simt::error(); }
template <class Kernel>
inline cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  simt::allow_shared_bytes(reinterpret_cast<const void*>(kernel), bytes);
  return cudaSuccess;
}
