#include "pointwise.h"

#include <algorithm>

#include "isa.h"

namespace sparsegan {
namespace {

// Returns one channel, of `area` elements, of one image of an operand.
Plane plane_of(const Operand& from, DType dtype, int64_t image, int64_t channel, int64_t area) {
  const InputTransform& t = from.transform;
  const DTypeRow& type = kDTypes[static_cast<int>(dtype)];
  const auto number = [&](const void* array, int64_t at) {
    return type.panel_type == kDoublePanel ? static_cast<const double*>(array)[at]
                                           : static_cast<const float*>(array)[at];
  };
  Plane plane;
  plane.x = static_cast<const char*>(from.x) + (image * from.image_stride + channel * area) * type.bytes;
  if (t.scale) {
    plane.scale = number(t.scale, image * t.image_stride + channel);
    plane.shift = number(t.shift, image * t.image_stride + channel);
  }
  if (t.slope) plane.slope = number(t.slope, channel);
  return plane;
}

}  // namespace

void pointwise(DType dtype, const Operand& a, const Operand* b, OutputActivation activation, int64_t images,
               int64_t channels, int64_t height, int64_t width, int64_t repeat, void* y, int64_t y_image_stride,
               const ThreadPool& pool) {
  const int row = static_cast<int>(dtype);
  const auto kernel = kernels().pointwise[row];
  const int64_t area = height * width, bytes = kDTypes[row].bytes;
  const int64_t planes = images * channels, threads = std::max<int64_t>(1, std::min(pool.threads, planes));
  parallel_for_ranges(pool, threads, planes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / channels, channel = i % channels;
      const Plane plane_a = plane_of(a, dtype, image, channel, area);
      const Plane plane_b = b ? plane_of(*b, dtype, image, channel, area) : Plane{};
      char* const out = static_cast<char*>(y) + (image * y_image_stride + channel * area * repeat * repeat) * bytes;
      kernel(plane_a, b ? &plane_b : nullptr, activation, height, width, repeat, out);
    }
  });
}

}  // namespace sparsegan
