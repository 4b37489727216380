// Starting kernels, and what a kernel asks its launch for. The same sources run on the host under an executor that
// tests own (SPARSEGAN_SIMT): it is called here and in async.h, nowhere else.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace sparsegan::cuda {

// Throws std::runtime_error where CUDA refuses the launch; errors of the kernel itself come later, on the stream.
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
