// cp.async: copies from global to shared memory that run while the thread continues.
#pragma once

#include <cuda_runtime.h>

namespace sparsegan::cuda {

// Copies kBytes from `global` to `shared` if `valid`. Otherwise writes zeros and does not read `global`. kBytes is 4, 8
// or 16, and both addresses are multiples of kBytes.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef SPARSEGAN_SIMT
  simt::copy_async(shared, global, kBytes, valid ? kBytes : 0);
#else
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {  // .cg bypasses the first-level cache: a block reads no byte twice
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(kBytes),
                 "r"(valid ? kBytes : 0)
                 : "memory");
  }
#endif
}

// Waits for the copies of this thread. The copies of the whole block are there after the next __syncthreads.
__device__ __forceinline__ void wait_copies() {
#ifdef SPARSEGAN_SIMT
  simt::wait_all();
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace sparsegan::cuda
