// Runs the ops of csrc/cuda on the host for tests/test_simt.py: copies host arrays into buffers, compiles the device
// plan and makes the call.
#include "../../../csrc/cuda/conv.h"
#include "../../../csrc/cuda/step_cases.h"

#include <exception>
#include <random>
#include <vector>

extern "C" const char* tap_clocks(int strip, int column_step, const void* steps, int count, int repeats, int blocks,
                                  float* sums, long long* clocks);  // benchmarks/native/tap_clocks.cu

namespace {

using simt::Access;
using sparsegan::cuda::ConvCall;

constexpr int geometry_numbers = 13;

}  // namespace

extern "C" {

// One call. tests/test_simt.py fills it in.
struct SimtCall {
  int64_t geometry[geometry_numbers];
  int64_t adjoint, dtype, taps, images, x_channels, x_height, x_width, y_channels, y_height, y_width;
  int64_t multiprocessors;
  int64_t wgrad;   // 0: sparse_conv
  int64_t seed;    // of the order of blocks and threads; 0: the natural order
  int64_t offset;  // elements from a multiple of 256 bytes to the start of each tensor
  int64_t damage;  // not 0: the seed of random damage to plan and support; then only bounds are checked
};

// The names of the kernels that the last call launched, one per line.
const char* simt_launched() { return simt::launched(); }

// The bytes that the last call read of the input `name`.
int64_t simt_bytes_read(const char* name) { return static_cast<int64_t>(simt::bytes_read(name)); }

// The PTX of a loop of csrc/cuda/steps.h, which the host does not run. Null: there is no such loop.
const char* simt_loop(int64_t strip, int64_t column_step, int64_t dots) {
#define SIMT_LOOP(SLOTS, STRIP, STEP)            \
  if (strip == (STRIP) && column_step == (STEP)) \
    return dots != 0 ? SPARSEGAN_DOT_LOOP(SLOTS, STRIP, STEP) : SPARSEGAN_SUM_LOOP(SLOTS, STRIP, STEP);
  SIMT_LOOP(8, 16, 1)
  SIMT_LOOP(16, 8, 1)
  SIMT_LOOP(16, 8, 2)
  SIMT_LOOP(16, 4, 1)
  SIMT_LOOP(16, 4, 2)
#undef SIMT_LOOP
  return nullptr;
}

// Runs `steps` on one block: `sums` [4][32][slots][strip]. Returns the error, null if there is none.
const char* simt_taps(int strip, int column_step, const void* steps, int count, int repeats, float* sums) {
  simt::begin(1);
  const void* device_steps = simt::add_buffer("steps", Access::input, steps, 8 * static_cast<size_t>(count));
  const size_t bytes = sizeof(float) * 128 * 128;
  auto* device_sums = static_cast<float*>(simt::add_buffer("sums", Access::output, nullptr, bytes));
  auto* clocks = static_cast<long long*>(simt::add_buffer("clocks", Access::output, nullptr, 4 * sizeof(long long)));
  if (const char* error = tap_clocks(strip, column_step, device_steps, count, repeats, 1, device_sums, clocks))
    simt::fail("%s", error);
  simt::read_buffer(device_sums, sums);
  return simt::error();
}

// Computes y from x, values and bias, or dv from gy and x. Returns the error, null if there is none.
const char* simt_conv(const SimtCall* call, const int32_t* support, const void* x, const void* values, const void* bias,
                      float negative_slope, void* y, const void* gy, void* dv) try {
  simt::begin(static_cast<uint64_t>(call->seed), call->damage != 0);
  ConvCall c;
  const auto geometry = sparsegan::Geometry::from_list({call->geometry, call->geometry + geometry_numbers});
  c.geometry = &geometry;
  c.adjoint = call->adjoint != 0;
  c.dtype = static_cast<sparsegan::cuda::DType>(call->dtype);
  c.taps = call->taps;
  c.images = call->images;
  c.x_height = call->x_height, c.x_width = call->x_width;
  c.y_height = call->y_height, c.y_width = call->y_width;
  c.multiprocessors = call->multiprocessors;

  std::vector<int32_t> kept(support, support + c.taps);
  std::vector<int32_t> plan(sparsegan::device_plan_shape(geometry, c.adjoint, c.taps).size());
  sparsegan::compile_device_plan(geometry, c.adjoint, support, c.taps, plan.data());
  if (call->damage != 0) {
    std::mt19937 random(static_cast<unsigned>(call->damage));
    for (std::vector<int32_t>* numbers : {&kept, &plan})
      for (int32_t& number : *numbers)
        if (random() % 4 == 0) number = static_cast<int32_t>(random()) >> random() % 32;
  }

  const size_t element = element_bytes(c.dtype), offset = element * call->offset;
  const size_t x_bytes = element * c.images * call->x_channels * c.x_height * c.x_width;
  const size_t y_bytes = element * c.images * call->y_channels * c.y_height * c.y_width;
  const size_t tap_bytes = element * c.taps;
  const auto input = [](const char* name, const void* host, size_t bytes, size_t at) {
    return simt::add_buffer(name, Access::input, host, bytes, at);
  };
  const auto output = [](const char* name, size_t bytes, size_t at) {
    return simt::add_buffer(name, Access::output, nullptr, bytes, at);
  };
  c.support = static_cast<int32_t*>(input("support", kept.data(), kept.size() * sizeof(int32_t), 0));
  c.plan = static_cast<int32_t*>(input("plan", plan.data(), plan.size() * sizeof(int32_t), 0));
  const void* device_x = input("x", x, x_bytes, offset);
  if (call->wgrad == 0) {
    const void* device_values = input("values", values, tap_bytes, offset);
    const void* device_bias = bias == nullptr ? nullptr : input("bias", bias, element * call->y_channels, offset);
    auto* workspace = static_cast<float*>(output("workspace", sizeof(float) * sparse_conv_workspace(c), 0));
    void* device_y = output("y", y_bytes, offset);
    sparse_conv(c, device_x, device_values, device_bias, negative_slope, device_y, workspace, nullptr);
    simt::read_buffer(device_y, y);
  } else {
    const void* device_gy = input("gy", gy, y_bytes, offset);
    auto* workspace = static_cast<float*>(output("workspace", sizeof(float) * wgrad_workspace(c), 0));
    void* device_dv = output("dv", tap_bytes, offset);
    wgrad(c, device_gy, device_x, device_dv, workspace, nullptr);
    simt::read_buffer(device_dv, dv);
  }
  return simt::error();
} catch (const std::exception& e) {
  simt::fail("%s", e.what());
  return simt::error();
}
}
