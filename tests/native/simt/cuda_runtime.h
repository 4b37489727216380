// Stands in for CUDA's header when kernels are compiled for the SIMT executor. It has only the parts that they use.
#pragma once

#include <cmath>
#include <type_traits>

#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx simt::thread_index()
#define blockIdx simt::block_index()
#define blockDim simt::block_size()
#define gridDim simt::grid_size()

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  operator simt::Index() const { return {x, y, z}; }
};

// ---------------------------------------------------------------- vectors

#define SIMT_VECTORS(type, name)                                   \
  struct alignas(8) name##2 { type x, y; };                        \
  struct alignas(16) name##4 { type x, y, z, w; };                 \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
SIMT_VECTORS(float, float)
SIMT_VECTORS(int, int)
SIMT_VECTORS(unsigned, uint)
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
inline float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
inline unsigned __float_as_uint(float number) { return __builtin_bit_cast(unsigned, number); }

// ---------------------------------------------------------------- barriers and shuffles

inline void __syncthreads(SIMT_SITE) { simt::block_barrier({file, line}); }
inline void __syncwarp(unsigned mask = ~0U, SIMT_SITE) {
  simt::warp_collective("__syncwarp", mask, 0, simt::lane(), {file, line});
}

// `width` splits the warp into sections. A lane whose source is outside its section gets its own value.
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

// Returns the mask of the lanes whose `predicate` is not 0. All lanes of the warp take part.
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  unsigned lanes = static_cast<unsigned>(predicate != 0) << simt::lane();
  for (unsigned bits = 1; bits < 32; bits *= 2) {
    lanes |= simt::shuffle("__ballot_sync", mask, lanes, simt::lane() ^ bits, {file, line});
  }
  return lanes;
}
// Returns the greatest number of the lanes. All lanes of the warp take part.
inline int __reduce_max_sync(unsigned mask, int number, SIMT_SITE) {
  for (unsigned bits = 1; bits < 32; bits *= 2) {
    number = max(number, simt::shuffle("__reduce_max_sync", mask, number, simt::lane() ^ bits, {file, line}));
  }
  return number;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(unsigned bits) { return bits == 0 ? 32 : __builtin_clz(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int __float_as_int(float number) { return __builtin_bit_cast(int, number); }
inline long long clock64() { return 0; }  // the host has no clock of a multiprocessor
inline float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }

// ---------------------------------------------------------------- functions for host code

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };

inline cudaError_t cudaGetLastError() { return simt::error() == nullptr ? cudaSuccess : cudaErrorInvalidValue; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : simt::error(); }
