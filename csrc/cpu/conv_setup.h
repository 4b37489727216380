// All that follows from a call's sizes: kernels, tiling, and where x and y lie in their panels.
#pragma once

#include <cstdint>

#include "conv.h"

namespace sparsegan {

struct ConvSetup {
  const Kernels& k;
  int dtype, panel_type, width;  // rows of the kernel tables
  int64_t element;               // bytes of a panel element
  Tiling tiling;
  int64_t joined;  // blocks run as one
  Frame x, y;

  // Bytes of a panel's plane, and of a panel.
  int64_t x_plane() const { return x.plane * element; }
  int64_t y_plane() const { return y.plane * element; }
  int64_t x_panel() const { return x.planes() * x_plane(); }
  int64_t y_panel() const { return y.planes() * y_plane(); }
};

// register_tiles: for sparse_conv, which keeps outputs in registers; wgrad does not. Throws std::invalid_argument where
// a span of x is too large for the kernels' offsets.
ConvSetup conv_setup(const ConvCall& call, bool register_tiles);

}  // namespace sparsegan
