// The one function of torch's CUDA library that ops_cuda.cpp calls, for the linker (cmake/cuda.cmake) and for the test
// that loads the object where torch has no such library. Nothing calls it.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) int32_t aoti_torch_get_current_cuda_stream(int32_t, void**) {
  return 1;  // AOTI_TORCH_FAILURE
}
