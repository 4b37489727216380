// The ops on a CPU. Each op checks all its arguments and then calls the function of the same name in csrc/cpu.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/conv.h"
#include "../cpu/pointwise.h"
#include "../cpu/workspace.h"
#include "call.h"

namespace {

using sparsegan::CallArguments;
using sparsegan::CheckedCall;
using sparsegan::ConvCall;
using sparsegan::DType;
using sparsegan::Padding;
using sparsegan::PlanView;
using sparsegan::ThreadPool;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
#define SPARSEGAN_CASE(name, scalar_type, element, panel_element) \
  case ScalarType::scalar_type:                                   \
    return DType::name;
    SPARSEGAN_DTYPES(SPARSEGAN_CASE)
#undef SPARSEGAN_CASE
    default:
      break;
  }
  std::string names;
  for (int i = 0; i < sparsegan::kTensorTypes; ++i) {
    names += (i == 0 ? "" : i + 1 < sparsegan::kTensorTypes ? ", " : " or ");
    names += sparsegan::kDTypes[i].name;
  }
  STD_TORCH_CHECK(false, "sparsegan::", op, ": the input's dtype must be ", names, " on a CPU");
  return DType::float32;
}

// Throws where torch would refuse to pad: reflect padding must be smaller than the image, circular padding not larger.
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
    const int64_t most = c.padding == Padding::reflect ? x - 1 : c.padding == Padding::circular ? x : int64_t{1} << 20;
    const bool fits = before >= 0 && before <= most;  // otherwise `after` could overflow
    const int64_t after = fits ? (y - 1) * axis.stride + axis.offset(axis.kernel - 1) - before - (x - 1) : 0;
    STD_TORCH_CHECK(fits && after <= most, "sparsegan::", op, ": an input of ", x, " elements would be padded by ",
                    before, " and ", after, "; this padding mode takes 0 to ", most);
  };
  check(c.geometry->h, c.pad_before_h, c.x_height, c.y_height);
  check(c.geometry->w, c.pad_before_w, c.x_width, c.y_width);
}

struct CpuCall : CheckedCall {
  PlanView view;
  ConvCall conv;

  explicit CpuCall(const CallArguments& a, bool direct = false)
      : CheckedCall(a),
        view(sparsegan::view_plan(geometry, a.adjoint, units(), support.numel(), plan_numbers(), plan.numel(), direct)),
        conv{call, &view, dtype_of(a.op, a.x)} {
    STD_TORCH_CHECK(a.pad_before.size() == 2, "sparsegan::", a.op, ": pad_before has ", a.pad_before.size(),
                    " numbers; it must be [rows, columns]");
    conv.padding = static_cast<Padding>(a.padding_mode);
    conv.pad_before_h = a.pad_before[0];
    conv.pad_before_w = a.pad_before[1];
    check_padding(a.op, conv, a.padding_mode);
  }
};

// torch's thread pool, with torch.get_num_threads() threads.
ThreadPool torch_threads() {
  return {torch::stable::get_num_threads(), [](int64_t count, const std::function<void(int64_t)>& body) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) body(i);
            });
          }};
}

Tensor sparse_conv(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& support,
                   const std::optional<Tensor>& plan, const std::optional<Tensor>& adjoint_plan,
                   std::vector<int64_t> geometry, bool adjoint, std::vector<int64_t> output_size, int64_t padding_mode,
                   std::vector<int64_t> pad_before, double negative_slope) {
  dtype_of("sparse_conv", x);
  sparsegan::check_sparse_conv(x, values, output_size, negative_slope);
  CpuCall call(
      {"sparse_conv", x, support, plan, adjoint_plan, geometry, adjoint, output_size, padding_mode, pad_before});
  call.conv.output_transform.negative_slope = negative_slope;
  sparsegan::check_values(values, support, call.geometry.vector());
  const Tensor x_c = torch::stable::contiguous(x), values_c = torch::stable::contiguous(values);
  const std::optional<Tensor> bias_c = sparsegan::checked_bias(bias, x, output_size[0]);
  Tensor y = torch::stable::new_empty(x, {x.size(0), output_size[0], output_size[1], output_size[2]});
  // From this size on, the C library maps new pages at every allocation. Page faults of 4 KiB each took longer than
  // writing the output.
  constexpr int64_t kMapped = 32 << 20;
  if (const int64_t bytes = y.numel() * static_cast<int64_t>(y.element_size()); bytes >= kMapped) {
    sparsegan::prefer_huge_pages(y.mutable_data_ptr(), bytes);
  }
  sparsegan::sparse_conv(call.conv, x_c.const_data_ptr(), values_c.const_data_ptr(),
                         bias_c ? bias_c->const_data_ptr() : nullptr, y.mutable_data_ptr(), torch_threads());
  return y;
}

// Checks parameters of an input transform or a norm: [rows, channels], or [channels] if `rows` is 0, of the panel's
// type, with contiguous channels.
const Tensor& check_map(const char* op, const char* name, const Tensor& map, const Tensor& x, int64_t rows,
                        int64_t channels) {
  sparsegan::check_device(op, name, map, x);
  const ScalarType wanted = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(map.scalar_type() == wanted, "sparsegan::", op, ": ", name,
                  " must be float64 for a float64 input and float32 for any other input");
  const bool shaped = rows == 0 ? map.dim() == 1 && map.size(0) == channels
                                : map.dim() == 2 && map.size(0) == rows && map.size(1) == channels;
  STD_TORCH_CHECK(shaped && (channels <= 1 || map.stride(map.dim() - 1) == 1), "sparsegan::", op, ": ", name,
                  " must have shape [", rows == 0 ? std::string() : std::to_string(rows) + ", ", channels,
                  "], with contiguous channels");
  return map;
}

// The number of elements from one image of a tensor [N, C, H, W] to the next. Throws if an image is not contiguous, or
// overlaps the next image.
int64_t image_stride(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, "sparsegan::", op, ": ", name, " has ", t.dim(), " dimensions; it must have 4");
  const int64_t row = t.size(3), plane = t.size(2) * row, image = t.size(1) * plane;
  STD_TORCH_CHECK(row >= 1 && plane >= 1 && image >= 1, "sparsegan::", op, ": ", name,
                  " is empty; it must have at least one channel, row and column");
  const bool whole = (row == 1 || t.stride(3) == 1) && (t.size(2) == 1 || t.stride(2) == row) &&
                     (t.size(1) == 1 || t.stride(1) == plane) && (t.size(0) <= 1 || t.stride(0) >= image);
  STD_TORCH_CHECK(whole, "sparsegan::", op, ": each image of ", name, " must be contiguous");
  return t.size(0) <= 1 ? image : t.stride(0);
}

sparsegan::InputTransform input_transform(const char* op, const Tensor& x, const std::optional<Tensor>& scale,
                                          const std::optional<Tensor>& shift, const std::optional<Tensor>& slope) {
  sparsegan::InputTransform p;
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "sparsegan::", op,
                  ": scale and shift must be given together");
  if (scale) {
    p.scale = check_map(op, "scale", *scale, x, x.size(0), x.size(1)).const_data_ptr();
    p.shift = check_map(op, "shift", *shift, x, x.size(0), x.size(1)).const_data_ptr();
    p.image_stride = x.size(0) > 1 ? scale->stride(0) : 0;
    STD_TORCH_CHECK(x.size(0) <= 1 || shift->stride(0) == p.image_stride, "sparsegan::", op,
                    ": scale and shift must have the same strides");
  }
  if (slope) p.slope = check_map(op, "slope", *slope, x, 0, x.size(1)).const_data_ptr();
  return p;
}

sparsegan::OutputActivation checked_activation(const char* op, int64_t activation) {
  STD_TORCH_CHECK(activation >= 0 && activation < sparsegan::kOutputActivations, "sparsegan::", op,
                  ": output_activation is ", activation, "; it must be from 0 (none) to ",
                  sparsegan::kOutputActivations - 1, " (softplus)");
  return static_cast<sparsegan::OutputActivation>(activation);
}

// The short precision that the dtype of the values asks for; none where values and x have the same dtype.
std::optional<DType> short_precision(const Tensor& x, const Tensor& values) {
  if (x.scalar_type() != ScalarType::Float) return std::nullopt;
  switch (values.scalar_type()) {
#define SPARSEGAN_CASE(name, scalar_type, lane, channels) \
  case ScalarType::scalar_type:                           \
    return DType::name;
    SPARSEGAN_SHORTS(SPARSEGAN_CASE)
#undef SPARSEGAN_CASE
    default:
      return std::nullopt;
  }
}

// Sets the short precision of a call, and throws where the plan or the numbers do not fit it.
void set_precision(const char* op, ConvCall& c, DType precision, const Tensor& values,
                   const std::optional<Tensor>& sum_scale, const Tensor& x, double to_integer, int64_t most) {
  const sparsegan::DTypeRow& row = sparsegan::kDTypes[static_cast<int>(precision)];
  const sparsegan::PlanShape& shape = c.plan->shape;
  STD_TORCH_CHECK(shape.depth % row.lane_channels == 0 && shape.width == 1, "sparsegan::", op, ": a unit has ",
                  shape.depth, " source and ", shape.width,
                  " target channels; values of this dtype need a multiple of ", row.lane_channels,
                  " source channels and 1 target channel");
  STD_TORCH_CHECK(!c.plan->value_index, "sparsegan::", op,
                  ": values of a shorter dtype than x must be in the order of the taps, with a direct plan");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(values.const_data_ptr()) % 4 == 0, "sparsegan::", op,
                  ": values of a shorter dtype than x must begin at a multiple of 4 bytes");
  STD_TORCH_CHECK(sum_scale.has_value() == row.integer, "sparsegan::", op,
                  ": sum_scale must be given for integer values, and not for other values");
  c.dtype = precision;
  if (!row.integer) return;
  const int64_t limit = precision == DType::float32_as_int8 ? 127 : 32767;
  STD_TORCH_CHECK(most >= 1 && most <= limit && to_integer > 0 && to_integer < 1e30, "sparsegan::", op, ": most is ",
                  most, " and to_integer is ", to_integer, "; most must be from 1 to ", limit,
                  ", and to_integer must be above 0 and finite");
  c.sum_scale =
      static_cast<const float*>(check_map(op, "sum_scale", *sum_scale, x, 0, shape.target_channels()).const_data_ptr());
  c.input_transform.to_integer = static_cast<float>(to_integer);
  c.input_transform.most = static_cast<float>(most);
}

sparsegan::SharedPanel shared_panel(const char* op, ConvCall c, const Tensor& panel, int64_t channels, int64_t packed,
                                    const std::vector<int64_t>& tile) {
  const int64_t sources = c.plan->shape.sources;
  STD_TORCH_CHECK(panel.scalar_type() == ScalarType::Byte && panel.is_contiguous() && panel.is_cpu(), "sparsegan::", op,
                  ": panel must be a contiguous uint8 tensor on the CPU");
  const int64_t lane = sparsegan::kDTypes[static_cast<int>(c.dtype)].lane_channels;
  STD_TORCH_CHECK(
      channels >= sources && channels <= int64_t{1} << 24 && packed >= 0 && packed <= sources && channels % lane == 0 &&
          packed % lane == 0,
      "sparsegan::", op, ": panel_channels is ", channels, " and panel_packed is ", packed, "; x has ", sources,
      " channels, which panel_channels must hold, and panel_packed is at most that; both must be multiples of ", lane);
  STD_TORCH_CHECK(
      tile.size() == 2 && tile[0] >= 1 && tile[1] >= 1 && tile[0] <= c.y_height && tile[1] <= 2 * c.y_width + 8,
      "sparsegan::", op, ": panel_tile must be the [height, width] of sparsegan_shared_panel");
  c.shared = {panel.mutable_data_ptr(), channels, packed, tile[0], tile[1]};
  const int64_t bytes = sparsegan::shared_panel_bytes(c);
  STD_TORCH_CHECK(c.shared.tile_h == tile[0] && c.shared.tile_w == tile[1] && panel.numel() >= bytes, "sparsegan::", op,
                  ": panel has ", panel.numel(), " bytes; a panel of ", channels, " channels in tiles of ", tile[0],
                  " x ", tile[1], " takes ", bytes);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(c.shared.data) % 64 == 0, "sparsegan::", op,
                  ": panel must begin on a cache line, a multiple of 64 bytes");
  return c.shared;
}

void sparse_conv_fused(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                       const std::optional<Tensor>& slope, const Tensor& values, const std::optional<Tensor>& bias,
                       const Tensor& support, const Tensor& plan, std::vector<int64_t> geometry, bool adjoint,
                       int64_t padding_mode, std::vector<int64_t> pad_before, double negative_slope, int64_t activation,
                       int64_t shuffle, const std::optional<Tensor>& norm_weight,
                       const std::optional<Tensor>& norm_bias, double eps, const Tensor& y,
                       const std::optional<Tensor>& y_scale, const std::optional<Tensor>& y_shift,
                       const std::optional<Tensor>& panel, int64_t panel_channels, int64_t panel_packed,
                       std::vector<int64_t> panel_tile, const std::optional<Tensor>& sum_scale, double to_integer,
                       int64_t most) {
  const char* const op = "sparse_conv_fused";
  dtype_of(op, x);
  sparsegan::check_tensor(op, "y", y, x, 4);
  STD_TORCH_CHECK(shuffle >= 1 && shuffle <= 64 && (shuffle == 1 || !adjoint), "sparsegan::", op, ": shuffle is ",
                  shuffle, "; it must be from 1 to 64, and 1 where adjoint");
  STD_TORCH_CHECK(y.size(0) == x.size(0) && y.size(2) % shuffle == 0 && y.size(3) % shuffle == 0, "sparsegan::", op,
                  ": y is [", y.size(0), ", ", y.size(1), ", ", y.size(2), ", ", y.size(3), "]; it must have ",
                  x.size(0), " images, and whole blocks of ", shuffle, " x ", shuffle);
  const std::optional<DType> precision = short_precision(x, values);
  sparsegan::check_sparse_conv(x, values, {y.size(1), y.size(2), y.size(3)}, negative_slope, precision.has_value());
  const int64_t channels = y.size(1) * shuffle * shuffle;
  const std::vector<int64_t> y_size{channels, y.size(2) / shuffle, y.size(3) / shuffle};
  CpuCall call({op, x, support, plan, plan, geometry, adjoint, y_size, padding_mode, pad_before}, true);
  STD_TORCH_CHECK(shuffle == 1 || call.view.shape.width == 1 || shuffle * shuffle % call.view.shape.width == 0 ||
                      call.view.shape.width % (shuffle * shuffle) == 0,
                  "sparsegan::", op, ": shuffle is ", shuffle, "; its square must be a divisor or a multiple of the ",
                  call.view.shape.width, " channels of a unit");
  sparsegan::check_values(values, support, call.geometry.vector());
  const Tensor values_c = torch::stable::contiguous(values);
  const std::optional<Tensor> bias_c = sparsegan::checked_bias(bias, x, channels);
  ConvCall& c = call.conv;
  c.x_image_stride = image_stride(op, "x", x);
  c.y_image_stride = image_stride(op, "y", y);
  c.input_transform = input_transform(op, x, scale, shift, slope);
  c.output_transform = {negative_slope, checked_activation(op, activation)};
  c.shuffle = shuffle;
  STD_TORCH_CHECK(y_scale.has_value() == y_shift.has_value(), "sparsegan::", op,
                  ": y_scale and y_shift must be given together");
  if (y_scale) {
    STD_TORCH_CHECK(eps >= 0, "sparsegan::", op, ": eps is ", eps, "; it must not be below 0");
    c.norm.scale = check_map(op, "y_scale", *y_scale, x, y.size(0), y.size(1)).mutable_data_ptr();
    c.norm.shift = check_map(op, "y_shift", *y_shift, x, y.size(0), y.size(1)).mutable_data_ptr();
    c.norm.image_stride = y.size(0) > 1 ? y_scale->stride(0) : 0;
    STD_TORCH_CHECK(y.size(0) <= 1 || (y_shift->stride(0) == c.norm.image_stride && c.norm.image_stride >= y.size(1)),
                    "sparsegan::", op,
                    ": y_scale and y_shift must have the same strides, and rows that do not overlap");
    if (norm_weight) c.norm.weight = check_map(op, "norm_weight", *norm_weight, x, 0, y.size(1)).const_data_ptr();
    if (norm_bias) c.norm.bias = check_map(op, "norm_bias", *norm_bias, x, 0, y.size(1)).const_data_ptr();
    c.norm.eps = eps;
  }
  if (precision) set_precision(op, c, *precision, values_c, sum_scale, x, to_integer, most);
  if (panel) c.shared = shared_panel(op, c, *panel, panel_channels, panel_packed, panel_tile);
  sparsegan::check_apart(op, {{"y", y}, {"y_scale", y_scale}, {"y_shift", y_shift}, {"panel", panel}},
                         {{"x", x},
                          {"scale", scale},
                          {"shift", shift},
                          {"slope", slope},
                          {"values", values},
                          {"bias", bias},
                          {"support", support},
                          {"plan", plan},
                          {"norm_weight", norm_weight},
                          {"norm_bias", norm_bias},
                          {"sum_scale", sum_scale}});
  sparsegan::sparse_conv(c, x.const_data_ptr(), values_c.const_data_ptr(), bias_c ? bias_c->const_data_ptr() : nullptr,
                         y.mutable_data_ptr(), torch_threads());
}

void pointwise(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
               const std::optional<Tensor>& slope, const std::optional<Tensor>& other,
               const std::optional<Tensor>& other_scale, const std::optional<Tensor>& other_shift,
               const std::optional<Tensor>& other_slope, int64_t activation, int64_t repeat, const Tensor& y) {
  const char* const op = "pointwise";
  const DType dtype = dtype_of(op, x);
  sparsegan::check_tensor(op, "y", y, x, 4);
  STD_TORCH_CHECK(repeat >= 1 && y.size(0) == x.size(0) && y.size(1) == x.size(1) && y.size(2) % repeat == 0 &&
                      y.size(2) / repeat == x.size(2) && y.size(3) % repeat == 0 && y.size(3) / repeat == x.size(3),
                  "sparsegan::", op, ": y must have the input's shape, ", repeat, " times as high and wide");
  const sparsegan::Operand a{x.const_data_ptr(), image_stride(op, "x", x), input_transform(op, x, scale, shift, slope)};
  sparsegan::Operand b;
  if (other) {
    sparsegan::check_tensor(op, "other", *other, x, 4);
    for (int64_t d = 0; d < 4; ++d) {
      STD_TORCH_CHECK(other->size(d) == x.size(d), "sparsegan::", op, ": other has ", other->size(d),
                      " elements along dimension ", d, "; it must have the input's ", x.size(d));
    }
    b = {other->const_data_ptr(), image_stride(op, "other", *other),
         input_transform(op, *other, other_scale, other_shift, other_slope)};
  }
  // y may be x or other itself, because each element is read before the same thread overwrites it.
  const int64_t y_image_stride = image_stride(op, "y", y);
  const auto unless_in_place = [&](const Tensor* read, int64_t stride) -> const Tensor* {
    const bool in_place = read && repeat == 1 && read->const_data_ptr() == y.const_data_ptr();
    return in_place && stride == y_image_stride ? nullptr : read;
  };
  sparsegan::check_apart(op, {{"y", y}},
                         {{"x", unless_in_place(&x, a.image_stride)},
                          {"other", unless_in_place(other ? &*other : nullptr, b.image_stride)},
                          {"scale", scale},
                          {"shift", shift},
                          {"slope", slope},
                          {"other_scale", other_scale},
                          {"other_shift", other_shift},
                          {"other_slope", other_slope}});
  sparsegan::pointwise(dtype, a, other ? &b : nullptr, checked_activation(op, activation), x.size(0), x.size(1),
                       x.size(2), x.size(3), repeat, y.mutable_data_ptr(), y_image_stride, torch_threads());
}

Tensor wgrad(const Tensor& gy, const Tensor& x, const Tensor& support, const std::optional<Tensor>& plan,
             const std::optional<Tensor>& adjoint_plan, std::vector<int64_t> geometry, bool adjoint,
             int64_t padding_mode, std::vector<int64_t> pad_before) {
  dtype_of("wgrad", x);
  sparsegan::check_wgrad(gy, x);
  const std::vector<int64_t> y_size{gy.size(1), gy.size(2), gy.size(3)};
  const CpuCall call({"wgrad", x, support, plan, adjoint_plan, geometry, adjoint, y_size, padding_mode, pad_before});
  const Tensor x_c = torch::stable::contiguous(x), gy_c = torch::stable::contiguous(gy);
  Tensor dv = torch::stable::new_empty(x, {support.numel() * call.geometry.vector()});
  sparsegan::wgrad(call.conv, gy_c.const_data_ptr(), x_c.const_data_ptr(), dv.mutable_data_ptr(), torch_threads());
  return dv;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegan, CPU, m) {
  m.impl("sparse_conv", TORCH_BOX(&sparse_conv));
  m.impl("wgrad", TORCH_BOX(&wgrad));
  m.impl("sparse_conv_fused", TORCH_BOX(&sparse_conv_fused));
  m.impl("pointwise", TORCH_BOX(&pointwise));
}
