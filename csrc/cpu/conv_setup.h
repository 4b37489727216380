// Everything that follows from the sizes of a call: the kernels, the tiling, and the layout of x and y in their panels.
#pragma once

#include <cstdint>

#include "conv.h"

namespace sparsegan {

struct ConvSetup {
  const Kernels& k;
  int dtype, panel_type, width;  // indices into the kernel tables
  int64_t element;               // bytes of a panel element
  Tiling tiling;
  int64_t joined;  // source blocks that run as one
  Frame x, y;

  // Bytes of one plane of a panel, and of one panel.
  int64_t x_plane() const { return x.plane * element; }
  int64_t y_plane() const { return y.plane * element; }
  int64_t x_panel() const { return x.planes() * x_plane(); }
  int64_t y_panel() const { return y.planes() * y_plane(); }
};

// Returns the setup of a call. register_tiles is true for sparse_conv, which keeps outputs in registers, and false for
// wgrad. Throws std::invalid_argument where a span of x is too large for the kernels' offsets.
ConvSetup conv_setup(const ConvCall& call, bool register_tiles);

}  // namespace sparsegan
