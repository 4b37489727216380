// The op pointwise over whole tensors.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "thread_pool.h"

namespace sparsegan {

// One tensor of a call: NCHW, its images contiguous and image_stride elements apart.
struct Operand {
  const void* x = nullptr;
  int64_t image_stride = 0;
  InputTransform transform;
};

// y = a, or a + b where b is not null, each after its own transform, then the activation; nearest upsampling by
// `repeat` in both directions. y may be a's or b's own memory where repeat is 1.
void pointwise(DType dtype, const Operand& a, const Operand* b, OutputActivation activation, int64_t images,
               int64_t channels, int64_t height, int64_t width, int64_t repeat, void* y, int64_t y_image_stride,
               const ThreadPool& pool);

}  // namespace sparsegan
