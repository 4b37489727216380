// The plain C functions that sparsegan/ops/native.py calls through ctypes. This file includes no Python header, so that
// one library serves every version of Python.
//
// A function that can fail returns a Status. After `invalid` and `failed`, sparsegan_error() returns the message.
// Pointers are to contiguous arrays; native.py has checked their dtypes and lengths.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../core/device_plan.h"
#include "../core/plan.h"
#include "../core/support.h"
#include "../core/vector_plan.h"
#include "../cpu/cost_model.h"
#include "../cpu/isa.h"
#include "../cpu/part_times.h"
#include "../cpu/workspace.h"

#define SPARSEGAN_API extern "C" __attribute__((visibility("default")))

namespace {

using sparsegan::Geometry;

enum Status : int32_t { ok = 0, invalid = 1, out_of_memory = 2, failed = 3 };

thread_local std::string error;

// Runs `body` and turns its exceptions into a Status, because no exception may leave a C function.
template <class Body>
int32_t guarded(const Body& body) noexcept {
  try {
    try {
      body();
      return ok;
    } catch (const std::invalid_argument& e) {
      error = e.what();
      return invalid;
    } catch (const std::bad_alloc&) {
      return out_of_memory;
    } catch (const std::exception& e) {
      error = e.what();
      return failed;
    }
  } catch (...) {  // there was no memory for a copy of the message
    return out_of_memory;
  }
}

// The kinds of plans. sparsegan/ops/native.py repeats these numbers.
enum class PlanKind : int32_t { cpu = 0, direct = 1, device = 2, vector = 3 };

Geometry geometry_of(const int64_t* numbers, int64_t count) { return Geometry::from_list({numbers, numbers + count}); }

int64_t plan_size(PlanKind kind, const Geometry& geometry, bool adjoint, int64_t taps) {
  switch (kind) {
    case PlanKind::cpu:
      return sparsegan::plan_shape(geometry, adjoint, taps).size();
    case PlanKind::direct:
      return sparsegan::direct_plan_shape(geometry, adjoint, taps).size();
    case PlanKind::device:
      return sparsegan::device_plan_shape(geometry, adjoint, taps).size();
    case PlanKind::vector:
      return sparsegan::vector_plan_shape(geometry, adjoint, taps).size();
  }
  throw std::invalid_argument("kind is " + std::to_string(static_cast<int32_t>(kind)) +
                              "; it must be 0 (CPU), 1 (direct), 2 (device) or 3 (vector)");
}

const char* joined(const std::vector<std::string>& names) {
  thread_local std::string text;
  text.clear();
  for (const std::string& name : names) text += (text.empty() ? "" : ",") + name;
  return text.c_str();
}

}  // namespace

// The message of the last function that failed in this thread.
SPARSEGAN_API const char* sparsegan_error() { return error.c_str(); }

// ---------------------------------------------------------------- the build and the machine

SPARSEGAN_API const char* sparsegan_compiler() { return SPARSEGAN_COMPILER; }
SPARSEGAN_API const char* sparsegan_cuda_build() { return SPARSEGAN_CUDA_BUILD; }
SPARSEGAN_API int32_t sparsegan_sanitized() { return SPARSEGAN_SANITIZED; }

// Comma-separated names. The string is valid until this thread's next call of either function.
SPARSEGAN_API const char* sparsegan_built_isas() { return joined(sparsegan::built_isas()); }
SPARSEGAN_API const char* sparsegan_supported_isas() { return joined(sparsegan::supported_isas()); }

SPARSEGAN_API int32_t sparsegan_isa(const char** name) {
  return guarded([&] { *name = sparsegan::kernels().isa; });
}

SPARSEGAN_API int32_t sparsegan_set_isa(const char* name) {
  return guarded([&] { sparsegan::set_isa(name); });
}

SPARSEGAN_API int32_t sparsegan_lanes(int32_t float64, int64_t* lanes) {
  return guarded([&] { *lanes = sparsegan::kernels().lanes[float64 ? 1 : 0]; });
}

// Writes for each short precision whether the instruction set in use has instructions for it, as bits: 1 int16, 2
// bfloat16, 4 int8.
SPARSEGAN_API int32_t sparsegan_short_precisions(int32_t* bits) {
  return guarded([&] { *bits = sparsegan::kernels().short_precisions; });
}

SPARSEGAN_API int32_t sparsegan_fma_gflops(double* gflops) {
  return guarded([&] { *gflops = sparsegan::fma_gflops(); });
}

SPARSEGAN_API int64_t sparsegan_workspace_bytes() { return sparsegan::workspace_bytes(); }

// Writes four times in nanoseconds: packing, multiplying, unpacking, ordering the values.
SPARSEGAN_API void sparsegan_part_times(int64_t* parts) {
  const sparsegan::PartTimes times = sparsegan::part_times();
  const int64_t all[] = {times.pack, times.multiply, times.unpack, times.order};
  std::copy(std::begin(all), std::end(all), parts);
}

// ---------------------------------------------------------------- plans

SPARSEGAN_API int32_t sparsegan_plan_size(int32_t kind, const int64_t* numbers, int64_t count, int32_t adjoint,
                                          int64_t taps, int64_t* size) {
  return guarded([&] { *size = plan_size(PlanKind{kind}, geometry_of(numbers, count), adjoint != 0, taps); });
}

// `plan` must have room for as many numbers as sparsegan_plan_size gives. `value_index` [taps] is written for a direct
// plan only.
SPARSEGAN_API int32_t sparsegan_compile_plan(int32_t kind, const int64_t* numbers, int64_t count, int32_t adjoint,
                                             const int32_t* support, int64_t taps, int32_t* plan,
                                             int32_t* value_index) {
  return guarded([&] {
    const Geometry geometry = geometry_of(numbers, count);
    // Check and compile a copy: another thread may write into the caller's array at any time.
    const std::vector<int32_t> units(support, support + taps);
    sparsegan::check_support(units.data(), units.size(), geometry.units());
    switch (PlanKind{kind}) {
      case PlanKind::cpu:
        return sparsegan::compile_plan(geometry, adjoint != 0, units.data(), taps, plan);
      case PlanKind::direct:
        return sparsegan::compile_direct_plan(geometry, adjoint != 0, units.data(), taps, plan, value_index);
      case PlanKind::device:
        return sparsegan::compile_device_plan(geometry, adjoint != 0, units.data(), taps, plan);
      case PlanKind::vector:
        return sparsegan::compile_vector_plan(geometry, adjoint != 0, units.data(), taps, plan);
    }
  });
}

// Writes the modelled cycles of one sparse_conv on one core as six numbers: multiplying, reading taps, changing
// targets, packing, unpacking, ordering the values. `sizes`: height and width of x, then of y.
SPARSEGAN_API int32_t sparsegan_sparse_conv_cycles(const int64_t* numbers, int64_t count, int32_t adjoint, int64_t taps,
                                                   int64_t images, const int64_t* sizes, int32_t float64,
                                                   double* cycles) {
  return guarded([&] {
    const Geometry geometry = geometry_of(numbers, count);
    sparsegan::PlanView plan;
    plan.shape = sparsegan::plan_shape(geometry, adjoint != 0, taps);
    const auto dtype = float64 ? sparsegan::DType::float64 : sparsegan::DType::float32;
    const sparsegan::Cycles found = sparsegan::sparse_conv_cycles(
        {{&geometry, adjoint != 0, images, sizes[0], sizes[1], sizes[2], sizes[3]}, &plan, dtype});
    const double all[] = {found.multiply, found.taps, found.targets, found.pack, found.unpack, found.order};
    std::copy(std::begin(all), std::end(all), cycles);
  });
}

// Writes the tile (height, width) and the bytes of a SharedPanel of `channels` channels (csrc/cpu/conv.h) for a
// sparse_conv with these arguments, as sparsegan_sparse_conv_cycles takes them. `dtype` is a DType, as a number.
SPARSEGAN_API int32_t sparsegan_shared_panel(const int64_t* numbers, int64_t count, int32_t adjoint, int64_t taps,
                                             int64_t images, const int64_t* sizes, int32_t dtype, int64_t channels,
                                             int64_t* found) {
  return guarded([&] {
    const Geometry geometry = geometry_of(numbers, count);
    sparsegan::PlanView plan;
    plan.shape = sparsegan::plan_shape(geometry, adjoint != 0, taps);
    sparsegan::ConvCall call{
        {&geometry, adjoint != 0, images, sizes[0], sizes[1], sizes[2], sizes[3]}, &plan, sparsegan::DType{dtype}};
    if (dtype < 0 || dtype >= sparsegan::kRows) {
      throw std::invalid_argument("dtype is " + std::to_string(dtype) + "; it must be from 0 to " +
                                  std::to_string(sparsegan::kRows - 1));
    }
    call.shared.channels = channels;
    found[2] = sparsegan::shared_panel_bytes(call);
    found[0] = call.shared.tile_h;
    found[1] = call.shared.tile_w;
  });
}

// ---------------------------------------------------------------- the codec of core/support.h

SPARSEGAN_API int32_t sparsegan_check_support(const int32_t* positions, int64_t count, int64_t size) {
  return guarded([&] { sparsegan::check_support(positions, static_cast<size_t>(count), size); });
}

// The caller owns `*code` and releases it with sparsegan_free.
SPARSEGAN_API int32_t sparsegan_encode_support(const int32_t* positions, int64_t count, int64_t size, uint8_t** code,
                                               int64_t* bytes) {
  return guarded([&] {
    // A copy, for the reason given in sparsegan_compile_plan.
    const std::vector<int32_t> copy(positions, positions + count);
    const std::vector<uint8_t> coded = sparsegan::encode_support(copy.data(), copy.size(), size);
    *code = static_cast<uint8_t*>(std::malloc(std::max<size_t>(coded.size(), 1)));
    if (!*code) throw std::bad_alloc();
    std::copy(coded.begin(), coded.end(), *code);
    *bytes = static_cast<int64_t>(coded.size());
  });
}

SPARSEGAN_API void sparsegan_free(void* memory) { std::free(memory); }

SPARSEGAN_API int32_t sparsegan_check_support_count(int64_t bytes, int64_t size, int64_t count) {
  return guarded([&] { sparsegan::check_support_count(static_cast<size_t>(bytes), size, static_cast<size_t>(count)); });
}

SPARSEGAN_API int32_t sparsegan_decode_support(const uint8_t* code, int64_t bytes, int64_t size, int64_t count,
                                               int32_t* positions) {
  return guarded([&] {
    sparsegan::decode_support(code, static_cast<size_t>(bytes), size, static_cast<size_t>(count), positions);
  });
}
