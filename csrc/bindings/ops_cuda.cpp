// The ops on a GPU, in a separate shared object. Each op checks all its arguments and then calls csrc/cuda/conv.h on
// the current stream. Memory comes from torch, and no op waits for the device, so that calls can be captured in a CUDA
// graph.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "../cuda/conv.h"
#include "call.h"

namespace {

using sparsegan::CallArguments;
using sparsegan::CheckedCall;
using sparsegan::cuda::ConvCall;
using sparsegan::cuda::DType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

DType dtype_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
#define SPARSEGAN_CASE(name, scalar_type, type, bytes) \
  case ScalarType::scalar_type:                        \
    return DType::name;
    SPARSEGAN_CUDA_DTYPES(SPARSEGAN_CASE)
#undef SPARSEGAN_CASE
    default:
      STD_TORCH_CHECK(false, "sparsegan::", op, ": the input's dtype must be float32, float16 or bfloat16 on a GPU");
  }
  return DType::float32;
}

int32_t device_of(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cuda(), "sparsegan::", op, ": x is not on a GPU, but another tensor is");
  return x.get_device_index();
}

int64_t multiprocessors(int32_t device) {
  int count = 0;
  STD_TORCH_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess,
                  "sparsegan: CUDA does not tell the number of multiprocessors of device ", device);
  return count;
}

struct CudaCall : CheckedCall {
  Tensor x;
  ConvCall conv;
  cudaStream_t stream = nullptr;

  explicit CudaCall(const CallArguments& a) : CheckedCall(a), x(torch::stable::contiguous(a.x)), conv{call} {
    STD_TORCH_CHECK(a.padding_mode == 0 && a.pad_before == std::vector<int64_t>({0, 0}), "sparsegan::", a.op,
                    ": padding_mode is ", a.padding_mode,
                    "; on a GPU it must be 0 (zeros) with pad_before [0, 0]: pad the input first");
    const int64_t size = sparsegan::device_plan_shape(geometry, a.adjoint, support.numel()).size();
    STD_TORCH_CHECK(plan.numel() == size, "sparsegan::", a.op, ": the plan has ", plan.numel(), " numbers where ", size,
                    " are expected; it must come from sparsegan.ops.plan for this geometry on a GPU");
    conv.dtype = dtype_of(a.op, x);
    conv.taps = support.numel();
    conv.support = units();
    conv.plan = plan_numbers();
    conv.multiprocessors = multiprocessors(x.get_device_index());
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

  Tensor workspace(int64_t floats) const { return torch::stable::new_empty(x, {floats}, ScalarType::Float); }
};

Tensor sparse_conv(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& support,
                   const std::optional<Tensor>& plan, const std::optional<Tensor>& adjoint_plan,
                   std::vector<int64_t> geometry, bool adjoint, std::vector<int64_t> output_size, int64_t padding_mode,
                   std::vector<int64_t> pad_before, double negative_slope) {
  dtype_of("sparse_conv", x);
  sparsegan::check_sparse_conv(x, values, output_size, negative_slope);
  const DeviceGuard guard(device_of("sparse_conv", x));
  const CudaCall call(
      {"sparse_conv", x, support, plan, adjoint_plan, geometry, adjoint, output_size, padding_mode, pad_before});
  sparsegan::check_values(values, support, 1);
  const Tensor values_c = torch::stable::contiguous(values);
  const std::optional<Tensor> bias_c = sparsegan::checked_bias(bias, x, output_size[0]);
  Tensor y = torch::stable::new_empty(x, {x.size(0), output_size[0], output_size[1], output_size[2]});
  const Tensor workspace = call.workspace(sparsegan::cuda::sparse_conv_workspace(call.conv));
  sparsegan::cuda::sparse_conv(call.conv, call.x.const_data_ptr(), values_c.const_data_ptr(),
                               bias_c ? bias_c->const_data_ptr() : nullptr, static_cast<float>(negative_slope),
                               y.mutable_data_ptr(), static_cast<float*>(workspace.mutable_data_ptr()), call.stream);
  return y;
}

Tensor wgrad(const Tensor& gy, const Tensor& x, const Tensor& support, const std::optional<Tensor>& plan,
             const std::optional<Tensor>& adjoint_plan, std::vector<int64_t> geometry, bool adjoint,
             int64_t padding_mode, std::vector<int64_t> pad_before) {
  dtype_of("wgrad", x);
  sparsegan::check_wgrad(gy, x);
  const DeviceGuard guard(device_of("wgrad", x));
  const std::vector<int64_t> y_size{gy.size(1), gy.size(2), gy.size(3)};
  const CudaCall call({"wgrad", x, support, plan, adjoint_plan, geometry, adjoint, y_size, padding_mode, pad_before});
  const Tensor gy_c = torch::stable::contiguous(gy);
  Tensor dv = torch::stable::new_empty(x, {support.numel()});
  const Tensor workspace = call.workspace(sparsegan::cuda::wgrad_workspace(call.conv));
  sparsegan::cuda::wgrad(call.conv, gy_c.const_data_ptr(), call.x.const_data_ptr(), dv.mutable_data_ptr(),
                         static_cast<float*>(workspace.mutable_data_ptr()), call.stream);
  return dv;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegan, CUDA, m) {
  m.impl("sparse_conv", TORCH_BOX(&sparse_conv));
  m.impl("wgrad", TORCH_BOX(&wgrad));
}
