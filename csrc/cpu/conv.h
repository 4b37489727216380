// sparse_conv and wgrad over whole tensors, implemented in sparse_conv.cpp and wgrad.cpp.
#pragma once

#include <cstdint>

#include "../core/call.h"
#include "../core/plan.h"
#include "instance_norm.h"
#include "kernels/kernels.h"
#include "thread_pool.h"

namespace sparsegan {

// One call. x and y are NCHW tensors of `dtype` with contiguous images. x has the plan's sources, y its targets.
struct ConvCall : Call {
  const PlanView* plan = nullptr;
  DType dtype = DType::float32;
  Padding padding = Padding::zeros;                // around x
  int64_t pad_before_h = 0, pad_before_w = 0;      // rows and columns of `padding` before x; the geometry then has none
  int64_t x_image_stride = 0, y_image_stride = 0;  // elements; 0: the images follow each other without a gap
  // For sparse_conv only:
  InputTransform input_transform = {};    // of x
  OutputTransform output_transform = {};  // of y
  InstanceNorm norm = {};                 // of y, after output_transform
  int64_t shuffle = 1;  // PixelShuffle's factor: y has channels / shuffle^2 channels, `shuffle` times as high and wide
};

// y = bias + sparse_conv(x, values), with the transforms and the shuffle of the call. Every element of y is written.
// bias [target channels] may be null.
void sparse_conv(const ConvCall& call, const void* x, const void* values, const void* bias, void* y,
                 const ThreadPool& pool);

// dv[v] = sum of gy * x over the positions at which value v joins gy and x. Every element of dv [taps * vector] is
// written.
void wgrad(const ConvCall& call, const void* gy, const void* x, void* dv, const ThreadPool& pool);

}  // namespace sparsegan
