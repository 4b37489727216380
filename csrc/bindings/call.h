// The arguments of sparse_conv and wgrad that are the same on every device, before and after the checks.
#pragma once

#include <optional>
#include <vector>

#include "../core/call.h"
#include "checks.h"

namespace sparsegan {

// The unchecked arguments; ops.cpp describes them. y_size: channels, height and width of the tensor on the target side.
struct CallArguments {
  const char* op;
  const torch::stable::Tensor& x;
  const torch::stable::Tensor& support;
  std::optional<torch::stable::Tensor> plan, adjoint_plan;
  const std::vector<int64_t>& geometry;
  bool adjoint;
  std::vector<int64_t> y_size;
  int64_t padding_mode;
  const std::vector<int64_t>& pad_before;
};

// The checked arguments. The tensors are contiguous and live as long as this object. The numbers in the plan are not
// checked here.
struct CheckedCall {
  Geometry geometry;
  torch::stable::Tensor support, plan;  // the plan for this direction
  Call call;                            // points to `geometry` above

  explicit CheckedCall(const CallArguments& a) : geometry(Geometry::from_list(a.geometry)) {
    const torch::stable::Tensor& chosen = chosen_plan(a.op, a.plan, a.adjoint_plan, a.adjoint);
    check_numbers(a.op, "plan", chosen, a.x);
    check_numbers(a.op, "support", a.support, a.x);
    support = torch::stable::contiguous(a.support);
    plan = torch::stable::contiguous(chosen);
    check_sizes(a.op, a.adjoint ? geometry.coarse_channels : geometry.fine_channels,
                a.adjoint ? geometry.fine_channels : geometry.coarse_channels, a.x, a.y_size[0], a.y_size[1],
                a.y_size[2]);
    call = {&geometry, a.adjoint, a.x.size(0), a.x.size(2), a.x.size(3), a.y_size[1], a.y_size[2]};
  }
  CheckedCall(const CheckedCall&) = delete;
  CheckedCall& operator=(const CheckedCall&) = delete;

  const int32_t* units() const { return static_cast<const int32_t*>(support.const_data_ptr()); }
  const int32_t* plan_numbers() const { return static_cast<const int32_t*>(plan.const_data_ptr()); }
};

}  // namespace sparsegan
