// The op pointwise over whole tensors.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "thread_pool.h"

namespace sparsegan {

// One NCHW tensor of a call. Its images are contiguous and image_stride elements apart.
struct Operand {
  const void* x = nullptr;
  int64_t image_stride = 0;
  InputTransform transform;
};

// y = activation(a), or activation(a + b) where b is not null. The transform of each operand comes first. y is
// upsampled (nearest) by `repeat` in both directions. y may be the memory of a or b where repeat is 1.
void pointwise(DType dtype, const Operand& a, const Operand* b, OutputActivation activation, int64_t images,
               int64_t channels, int64_t height, int64_t width, int64_t repeat, void* y, int64_t y_image_stride,
               const ThreadPool& pool);

}  // namespace sparsegan
