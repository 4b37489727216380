// The part of a call of sparse_conv or wgrad that is the same on every device.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace sparsegan {

// x is [images, source channels, x_height, x_width], y is [images, target channels, y_height, y_width].
struct Call {
  const Geometry* geometry = nullptr;
  bool adjoint = false;  // false: x lies on the fine grid and y on the coarse one; true: the other way round
  int64_t images = 0;
  int64_t x_height = 0, x_width = 0, y_height = 0, y_width = 0;
};

}  // namespace sparsegan
