// The size of the tiles, chosen once per shape and thread by the modelled cycles of cost_model.h.
#pragma once

#include <array>
#include <cstdint>

#include "conv.h"

namespace sparsegan {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The inputs to the choice of a tiling.
struct TilingProblem {
  const Geometry* geometry;
  PlanShape shape;
  int64_t images, height, width;  // outputs of one target plane
  int64_t reach_h, reach_w;       // size of the halo: the largest shift of a tap minus the smallest
  int64_t lanes, max_tile, max_rows, element;
  int64_t lane_channels;           // source channels per element of the panel of x
  int width_index;                 // index into kWidths
  bool register_tiles;             // true for sparse_conv, which keeps outputs in registers; false for wgrad
  bool fold;                       // images take the place of rows (fold_images in tiling.cpp)
  int64_t tile_h = 0, tile_w = 0;  // the tile that is asked for; 0: any

  using Key = std::array<int64_t, 25>;
  Key key() const;
};

TilingProblem tiling_problem(const ConvCall& call, const Kernels& k, bool register_tiles);

// Returns the tiling with the fewest modelled cycles. Each thread remembers its choices.
Tiling choose_tiling(const TilingProblem& problem);

}  // namespace sparsegan
