// Launches kernels, and gives a kernel its dynamic shared memory. Tests compile the same sources for the host
// (SPARSEGAN_SIMT) and run them under the executor of tests/native/simt, which only this file and async.h call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace sparsegan::cuda {

// Throws std::runtime_error if CUDA refuses the launch. Errors of the kernel itself appear later, on the stream.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Arguments... arguments) {
#ifdef SPARSEGAN_SIMT
  (void)stream;
  simt::launch(kernel, grid, block, shared_bytes, arguments...);
#else
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
#endif
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ inline char* dynamic_shared() {
#ifdef SPARSEGAN_SIMT
  return static_cast<char*>(simt::dynamic_shared());
#else
  extern __shared__ __align__(16) char memory[];
  return memory;
#endif
}

}  // namespace sparsegan::cuda
