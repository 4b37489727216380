// CPU implementations of the ops: checks everything that enters, then calls csrc/cpu/conv.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/conv.h"
#include "checks.h"

namespace {

using sparsegan::ConvCall;
using sparsegan::DType;
using sparsegan::Geometry;
using sparsegan::Padding;
using sparsegan::PlanView;
using sparsegan::Team;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    default:
      STD_TORCH_CHECK(false, "sparsegan::", op, ": the input's dtype must be float32, float64 or bfloat16 on a CPU");
  }
  return DType::float32;
}

// Throws where torch would refuse to pad: an element reaches further than a reflection or a turn of the image.
void check_padding(const char* op, const ConvCall& c, int64_t padding_mode) {
  STD_TORCH_CHECK(padding_mode >= 0 && padding_mode <= 3, "sparsegan::", op, ": padding_mode is ", padding_mode,
                  "; it must be 0 (zeros), 1 (reflect), 2 (replicate) or 3 (circular)");
  if (c.padding == Padding::zeros) {
    STD_TORCH_CHECK(c.pad_before_h == 0 && c.pad_before_w == 0, "sparsegan::", op, ": pad_before is [", c.pad_before_h,
                    ", ", c.pad_before_w, "]; it must be [0, 0] for zeros, which the geometry's padding adds");
    return;
  }
  STD_TORCH_CHECK(!c.adjoint, "sparsegan::", op, ": padding_mode is ", padding_mode,
                  "; from the coarse grid to the fine one it must be 0 (zeros)");
  const auto check = [&](const sparsegan::Axis& axis, int64_t before, int64_t x, int64_t y) {
    STD_TORCH_CHECK(axis.padding == 0, "sparsegan::", op, ": the geometry's padding is ", axis.padding,
                    "; it must be 0 with padding_mode ", padding_mode, ", whose padding pad_before gives");
    const int64_t after = (y - 1) * axis.stride + axis.offset(axis.kernel - 1) - before - (x - 1);
    const int64_t most = c.padding == Padding::reflect ? x - 1 : c.padding == Padding::circular ? x : int64_t{1} << 20;
    STD_TORCH_CHECK(before >= 0 && before <= most && after <= most, "sparsegan::", op, ": an input of ", x,
                    " elements would be padded by ", before, " and ", after, "; this padding mode takes 0 to ", most);
  };
  check(c.geometry->h, c.pad_before_h, c.x_height, c.y_height);
  check(c.geometry->w, c.pad_before_w, c.x_width, c.y_width);
}

// The tensors of a call in the form that the kernels read, kept alive as long as the call.
struct Call {
  Geometry geometry;
  PlanView view;
  Tensor support, plan;
  ConvCall conv;

  // x is [images, source channels, xh, xw], y is [images, target channels, yh, yw].
  Call(const char* op, const Tensor& x, const Tensor& units, const std::optional<Tensor>& fine_to_coarse,
       const std::optional<Tensor>& coarse_to_fine, const std::vector<int64_t>& numbers, bool adjoint,
       int64_t y_channels, int64_t y_height, int64_t y_width, int64_t padding_mode,
       const std::vector<int64_t>& pad_before) {
    geometry = Geometry::from_list(numbers);
    const Tensor& chosen = sparsegan::chosen_plan(op, fine_to_coarse, coarse_to_fine, adjoint);
    sparsegan::check_numbers(op, "plan", chosen, x);
    sparsegan::check_numbers(op, "support", units, x);
    support = torch::stable::contiguous(units);
    plan = torch::stable::contiguous(chosen);
    view = sparsegan::view_plan(geometry, adjoint, static_cast<const int32_t*>(support.const_data_ptr()),
                                support.numel(), static_cast<const int32_t*>(plan.const_data_ptr()), plan.numel());
    sparsegan::check_sizes(op, view.shape.sources, view.shape.target_channels(), x, y_channels, y_height, y_width);
    conv = {&geometry, adjoint, &view, dtype_of(op, x), x.size(0), x.size(2), x.size(3), y_height, y_width};
    STD_TORCH_CHECK(pad_before.size() == 2, "sparsegan::", op, ": pad_before has ", pad_before.size(),
                    " numbers; it must be [rows, columns]");
    conv.padding = static_cast<Padding>(padding_mode);
    conv.pad_before_h = pad_before[0];
    conv.pad_before_w = pad_before[1];
    check_padding(op, conv, padding_mode);
  }
};

// torch's own threads, as many as torch.get_num_threads() says.
Team torch_team() {
  return {torch::stable::get_num_threads(), [](int64_t count, const std::function<void(int64_t)>& body) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) body(i);
            });
          }};
}

Tensor gather(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& support,
              const std::optional<Tensor>& plan, const std::optional<Tensor>& adjoint_plan,
              std::vector<int64_t> geometry, bool adjoint, std::vector<int64_t> output_size, int64_t padding_mode,
              std::vector<int64_t> pad_before, double negative_slope) {
  dtype_of("gather", x);
  sparsegan::check_gather(x, values, output_size, negative_slope);
  const Call call("gather", x, support, plan, adjoint_plan, geometry, adjoint, output_size[0], output_size[1],
                  output_size[2], padding_mode, pad_before);
  sparsegan::check_values(values, support, call.geometry.vector());
  const Tensor x_c = torch::stable::contiguous(x), values_c = torch::stable::contiguous(values);
  const std::optional<Tensor> bias_c = sparsegan::checked_bias(bias, x, output_size[0]);
  Tensor y = torch::stable::new_empty(x, {x.size(0), output_size[0], output_size[1], output_size[2]});
  sparsegan::gather(call.conv, x_c.const_data_ptr(), values_c.const_data_ptr(),
                    bias_c ? bias_c->const_data_ptr() : nullptr, negative_slope, y.mutable_data_ptr(), torch_team());
  return y;
}

Tensor wgrad(const Tensor& gy, const Tensor& x, const Tensor& support, const std::optional<Tensor>& plan,
             const std::optional<Tensor>& adjoint_plan, std::vector<int64_t> geometry, bool adjoint,
             int64_t padding_mode, std::vector<int64_t> pad_before) {
  dtype_of("wgrad", x);
  sparsegan::check_wgrad(gy, x);
  const Call call("wgrad", x, support, plan, adjoint_plan, geometry, adjoint, gy.size(1), gy.size(2), gy.size(3),
                  padding_mode, pad_before);
  const Tensor x_c = torch::stable::contiguous(x), gy_c = torch::stable::contiguous(gy);
  Tensor dv = torch::stable::new_empty(x, {support.numel() * call.geometry.vector()});
  sparsegan::wgrad(call.conv, gy_c.const_data_ptr(), x_c.const_data_ptr(), dv.mutable_data_ptr(), torch_team());
  return dv;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegan, CPU, m) {
  m.impl("gather", TORCH_BOX(&gather));
  m.impl("wgrad", TORCH_BOX(&wgrad));
}
