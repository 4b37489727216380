// The two ops over whole tensors: sparse_conv.cpp and wgrad.cpp.
#pragma once

#include <cstdint>

#include "../core/call.h"
#include "../core/plan.h"
#include "instance_norm.h"
#include "kernels/kernels.h"
#include "thread_pool.h"

namespace sparsegan {

// One call: y and x are NCHW tensors of `dtype` with contiguous images; y is on the plan's target side, x on its source
// side.
struct ConvCall : Call {
  const PlanView* plan = nullptr;
  DType dtype = DType::float32;
  Padding padding = Padding::zeros;                // around x
  int64_t pad_before_h = 0, pad_before_w = 0;      // of it before x; the geometry's padding is then 0
  int64_t x_image_stride = 0, y_image_stride = 0;  // elements; 0: images lie side by side
  // What only sparse_conv does:
  InputTransform input_transform = {};    // of x
  OutputTransform output_transform = {};  // of y
  InstanceNorm norm = {};                 // of y, after that
  int64_t shuffle = 1;  // PixelShuffle: y has channels / shuffle^2, each as many times higher and wider
};

// y = bias + sparse_conv(x, values), changed as the call says; every element of y is written. bias [target channels]
// may be null.
void sparse_conv(const ConvCall& call, const void* x, const void* values, const void* bias, void* y,
                 const ThreadPool& pool);

// dv[v] = sum of gy * x over the positions where value v joins them; every element of dv [taps * vector] is written.
void wgrad(const ConvCall& call, const void* gy, const void* x, void* dv, const ThreadPool& pool);

}  // namespace sparsegan
