// The two ops on a GPU, for units of one weight; csrc/cpu/conv.h is the same for a CPU. This interface does not use
// torch: the caller passes device pointers, a stream and a workspace.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../core/call.h"
#include "../core/device_plan.h"
#include "dtypes.h"

namespace sparsegan::cuda {

// One call. x and y are contiguous NCHW tensors of `dtype`; y is on the plan's target side. values, bias and dv have
// the same dtype. Sums are float32. support [taps] and plan [device_plan_shape(...).size()] are int32 arrays on the
// device. Bad numbers in them give wrong results, but never an access outside the tensors.
struct ConvCall : Call {
  DType dtype = DType::float32;
  int64_t taps = 0;
  const int32_t* support = nullptr;
  const int32_t* plan = nullptr;
  int64_t multiprocessors = 132;  // of the device: they decide how many blocks keep it busy
};

// The size of the workspace that a call needs, in floats.
int64_t sparse_conv_workspace(const ConvCall& call);
int64_t wgrad_workspace(const ConvCall& call);

// y = bias + sparse_conv(x, values). Outputs below 0 are multiplied by negative_slope while they are written. Every
// element of y is written. bias [target channels] may be null. Deterministic. Throws std::invalid_argument for a call
// too large for 32-bit indices, std::runtime_error if CUDA refuses a launch.
void sparse_conv(const ConvCall& call, const void* x, const void* values, const void* bias, float negative_slope,
                 void* y, float* workspace, cudaStream_t stream);

// dv[v] = sum of gy * x over all pairs of elements that value v connects. Every element of dv [taps] is written.
// Deterministic. Throws the same exceptions as sparse_conv.
void wgrad(const ConvCall& call, const void* gy, const void* x, void* dv, float* workspace, cudaStream_t stream);

}  // namespace sparsegan::cuda
