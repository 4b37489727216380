// The dtypes that the CUDA kernels take. A new dtype needs a row here and its conversions in number.h.
#pragma once

#include <cstdint>

namespace sparsegan::cuda {

// X(name, name in torch's ScalarType, type of an element, bytes of an element).
#define SPARSEGAN_CUDA_DTYPES(X) \
  X(float32, Float, float, 4)    \
  X(float16, Half, __half, 2)    \
  X(bfloat16, BFloat16, __nv_bfloat16, 2)

enum class DType {
#define SPARSEGAN_ROW(name, ...) name,
  SPARSEGAN_CUDA_DTYPES(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
};

inline int64_t element_bytes(DType dtype) {
  constexpr int64_t kBytes[] = {
#define SPARSEGAN_ROW(name, scalar_type, type, bytes) bytes,
      SPARSEGAN_CUDA_DTYPES(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
  };
  return kBytes[static_cast<int>(dtype)];
}

}  // namespace sparsegan::cuda
