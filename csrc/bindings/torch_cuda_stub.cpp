// A stand-in for the one function of torch's CUDA library that ops_cuda.cpp calls. The linker needs the symbol
// (cmake/cuda.cmake), and so does the test that loads the object where torch has no CUDA. This definition never runs.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) int32_t aoti_torch_get_current_cuda_stream(int32_t, void**) {
  return 1;  // AOTI_TORCH_FAILURE
}
