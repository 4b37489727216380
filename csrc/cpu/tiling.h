// The size of the tiles, chosen once per shape and thread by the modelled cycles of cost_model.h.
#pragma once

#include <array>
#include <cstdint>

#include "conv.h"

namespace sparsegan {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the choice of a tiling depends on.
struct TilingProblem {
  const Geometry* geometry;
  PlanShape shape;
  int64_t images, height, width;  // outputs of one target plane
  int64_t reach_h, reach_w;       // halo: how far the taps' shifts spread
  int64_t lanes, max_tile, max_rows, element;
  int width_index;      // of kWidths
  bool register_tiles;  // sparse_conv keeps outputs in registers, wgrad does not
  bool fold;            // images are rows

  using Key = std::array<int64_t, 24>;
  Key key() const;
};

TilingProblem tiling_problem(const ConvCall& call, const Kernels& k, bool register_tiles);

Tiling choose_tiling(const TilingProblem& problem);

}  // namespace sparsegan
