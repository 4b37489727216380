// The checks of tensor arguments that are the same for the ops of all devices.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

namespace sparsegan {

inline void check_device(const char* op, const char* name, const torch::stable::Tensor& tensor,
                         const torch::stable::Tensor& like) {
  STD_TORCH_CHECK(tensor.device() == like.device(), "sparsegan::", op, ": ", name,
                  " is not on the input's device; all tensors must be on one device");
}

inline void check_tensor(const char* op, const char* name, const torch::stable::Tensor& tensor,
                         const torch::stable::Tensor& like, int64_t dim) {
  STD_TORCH_CHECK(tensor.dim() == dim, "sparsegan::", op, ": ", name, " has ", tensor.dim(),
                  " dimensions; it must have ", dim);
  check_device(op, name, tensor, like);
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "sparsegan::", op, ": ", name,
                  " has another dtype than the input; they must be the same");
}

// The memory that a tensor occupies: `runs` pieces of `length` bytes. Their starts are `step` bytes apart.
struct Extent {
  const char* first;
  int64_t runs, length, step;

  // Each index of the first dimension (an image, a row of a map) is one run if these parts do not overlap. Otherwise
  // the whole tensor is one run.
  explicit Extent(const torch::stable::Tensor& t) : first(static_cast<const char*>(t.const_data_ptr())), runs(1) {
    const auto element = static_cast<int64_t>(t.element_size());
    int64_t rest = 1;
    for (int64_t d = 1; d < t.dim(); ++d) rest += (t.size(d) - 1) * t.stride(d);
    const int64_t count = t.dim() == 0 ? 1 : t.size(0), apart = t.dim() == 0 ? 0 : t.stride(0);
    length = rest * element;
    step = apart * element;
    if (t.numel() == 0) {
      runs = 0;
    } else if (apart > rest) {  // otherwise no gap lies between the runs
      runs = count;
    } else {
      length += (count - 1) * step;
    }
  }

  bool overlaps(const Extent& other) const {
    for (int64_t i = 0, j = 0; i < runs && j < other.runs;) {
      const char *const a = first + i * step, *const b = other.first + j * other.step;
      if (a + length <= b) {
        ++i;
      } else if (b + other.length <= a) {
        ++j;
      } else {
        return true;
      }
    }
    return false;
  }
};

// A tensor argument and its name. The tensor is null if the argument was not given.
struct Named {
  const char* name;
  const torch::stable::Tensor* tensor;

  Named(const char* name, const torch::stable::Tensor* tensor) : name(name), tensor(tensor) {}
  Named(const char* name, const torch::stable::Tensor& tensor) : Named(name, &tensor) {}
  Named(const char* name, const std::optional<torch::stable::Tensor>& tensor)
      : Named(name, tensor ? &*tensor : nullptr) {}
};

// Throws if a written tensor overlaps a tensor that the op reads, or another written tensor. Otherwise the result would
// depend on the order of threads, and a kernel could change a plan that has already been checked.
inline void check_apart(const char* op, std::initializer_list<Named> written, std::initializer_list<Named> read) {
  std::vector<std::pair<const char*, Extent>> before;
  for (const Named& one : read) {
    if (one.tensor) before.emplace_back(one.name, *one.tensor);
  }
  for (const Named& one : written) {
    if (!one.tensor) continue;
    const Extent own(*one.tensor);
    for (const auto& [name, extent] : before) {
      STD_TORCH_CHECK(!own.overlaps(extent), "sparsegan::", op, ": ", one.name, " shares memory with ", name,
                      "; it must have memory of its own");
    }
    before.emplace_back(one.name, own);
  }
}

// Checks a support or a plan.
inline void check_numbers(const char* op, const char* name, const torch::stable::Tensor& numbers,
                          const torch::stable::Tensor& like) {
  STD_TORCH_CHECK(numbers.dim() == 1 && numbers.scalar_type() == torch::headeronly::ScalarType::Int, "sparsegan::", op,
                  ": the ", name, " must be a one-dimensional int32 tensor");
  check_device(op, name, numbers, like);
}

// The plan for this direction. Throws if it is None.
inline const torch::stable::Tensor& chosen_plan(const char* op,
                                                const std::optional<torch::stable::Tensor>& fine_to_coarse,
                                                const std::optional<torch::stable::Tensor>& coarse_to_fine,
                                                bool adjoint) {
  const auto& chosen = adjoint ? coarse_to_fine : fine_to_coarse;
  STD_TORCH_CHECK(chosen.has_value(), "sparsegan::", op, ": ", adjoint ? "adjoint_plan" : "plan",
                  " is None; this direction needs it (build the layer's plans with gradients enabled)");
  return *chosen;
}

// x is [images, sources, H, W]. The output is [images, y_channels, y_height, y_width].
inline void check_sizes(const char* op, int64_t sources, int64_t targets, const torch::stable::Tensor& x,
                        int64_t y_channels, int64_t y_height, int64_t y_width) {
  STD_TORCH_CHECK(x.size(1) == sources, "sparsegan::", op, ": the input has ", x.size(1),
                  " channels; the geometry says ", sources);
  STD_TORCH_CHECK(y_channels == targets, "sparsegan::", op, ": the output has ", y_channels,
                  " channels; the geometry says ", targets);
  STD_TORCH_CHECK(x.size(2) >= 1 && x.size(3) >= 1 && y_height >= 1 && y_width >= 1, "sparsegan::", op,
                  ": heights and widths must be at least 1; the input is ", x.size(2), " x ", x.size(3),
                  " and the output ", y_height, " x ", y_width);
  // Up to this size no index overflows, with any stride and dilation that a geometry may have.
  constexpr int64_t kMost = int64_t{1} << 31;
  for (const int64_t size : {x.size(2), x.size(3), y_height, y_width}) {
    STD_TORCH_CHECK(size <= kMost, "sparsegan::", op, ": a height or width is ", size, "; it must be at most ", kMost);
  }
}

inline void check_sparse_conv(const torch::stable::Tensor& x, const torch::stable::Tensor& values,
                              const std::vector<int64_t>& output_size, double negative_slope,
                              bool short_values = false) {
  check_tensor("sparse_conv", "x", x, x, 4);
  check_tensor("sparse_conv", "values", values, short_values ? values : x, 1);
  check_device("sparse_conv", "values", values, x);
  STD_TORCH_CHECK(output_size.size() == 3, "sparsegan::sparse_conv: output_size has ", output_size.size(),
                  " numbers; it must be [channels, height, width]");
  STD_TORCH_CHECK(negative_slope >= 0 && negative_slope <= 1, "sparsegan::sparse_conv: negative_slope is ",
                  negative_slope, "; it must be from 0 (ReLU) to 1 (no activation)");
}

inline void check_values(const torch::stable::Tensor& values, const torch::stable::Tensor& support, int64_t vector) {
  STD_TORCH_CHECK(values.numel() == support.numel() * vector, "sparsegan::sparse_conv: values has ", values.numel(),
                  " elements; a support of ", support.numel(), " units has ", support.numel() * vector);
}

// The bias as a contiguous tensor, if a bias was given.
inline std::optional<torch::stable::Tensor> checked_bias(const std::optional<torch::stable::Tensor>& bias,
                                                         const torch::stable::Tensor& x, int64_t channels) {
  if (!bias.has_value()) return std::nullopt;
  check_tensor("sparse_conv", "bias", *bias, x, 1);
  STD_TORCH_CHECK(bias->numel() == channels, "sparsegan::sparse_conv: bias has ", bias->numel(),
                  " elements; it must have ", channels);
  return torch::stable::contiguous(*bias);
}

inline void check_wgrad(const torch::stable::Tensor& gy, const torch::stable::Tensor& x) {
  check_tensor("wgrad", "x", x, x, 4);
  check_tensor("wgrad", "gy", gy, x, 4);
  STD_TORCH_CHECK(gy.size(0) == x.size(0), "sparsegan::wgrad: gy has ", gy.size(0), " images and x ", x.size(0),
                  "; they must be the same");
}

}  // namespace sparsegan
