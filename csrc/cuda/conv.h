// The two ops on a GPU, for single elements: what csrc/cpu/conv.h is on a CPU. No torch: device pointers, a stream, and
// a workspace that the caller allocates.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../core/call.h"
#include "../core/device_plan.h"
#include "dtypes.h"

namespace sparsegan::cuda {

// One call. x and y are contiguous NCHW tensors of `dtype`, y on the plan's target side; values, bias and dv are of
// `dtype` too, sums are float32. support [taps] and plan [device_plan_shape(...).size()] are int32, on the device; bad
// numbers in them give wrong results, never an access outside the tensors.
struct ConvCall : Call {
  DType dtype = DType::float32;
  int64_t taps = 0;
  const int32_t* support = nullptr;
  const int32_t* plan = nullptr;
  int64_t multiprocessors = 132;  // of the device: how many blocks it takes to keep it busy
};

// Floats of workspace that a call needs.
int64_t sparse_conv_workspace(const ConvCall& call);
int64_t wgrad_workspace(const ConvCall& call);

// y = bias + sparse_conv(x, values), what is not above 0 then multiplied by negative_slope; every element of y is
// written. bias [target channels] may be null. Deterministic. Throws std::invalid_argument for a call too large for
// 32-bit indices, std::runtime_error if CUDA refuses a launch.
void sparse_conv(const ConvCall& call, const void* x, const void* values, const void* bias, float negative_slope,
                 void* y, float* workspace, cudaStream_t stream);

// dv[v] = sum of gy * x over the positions where value v joins them; every element of dv [taps] is written.
// Deterministic. Throws as sparse_conv does.
void wgrad(const ConvCall& call, const void* gy, const void* x, void* dv, float* workspace, cudaStream_t stream);

}  // namespace sparsegan::cuda
