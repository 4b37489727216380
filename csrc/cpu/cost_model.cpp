#include "cost_model.h"

#include <algorithm>

#include "isa.h"

namespace sparsegan {
namespace {

// Cycles of the parts of a sparse_conv on one core. They are a non-negative least-squares fit to 1,174 timings on AVX2,
// of random tilings of 13 layers at 60 and 90 % sparsity. The fit predicts half of the timings within 10 %, 79 % within
// 20 % and 95 % within 35 %. kFma includes the cache misses per vector FMA, kSegment a mispredicted loop exit.
constexpr double kFma = 0.72, kTap = 1.9, kTapRow = 0.48;  // per vector FMA; per tap; per tap and row of register tile
constexpr double kSegment = 49, kSegmentOutput = 0.43;     // per target and run of joined blocks; per vector of outputs
constexpr double kPack = 11.7, kUnpack = 12.3;             // per vector
constexpr double kCode = 1.7, kOrder = 7.1;                // per tap and call: fine -> coarse; coarse -> fine
// wgrad: an FMA needs a little more than one load, and the lanes of each tap are summed once per strip.
constexpr double kWgradFma = 0.62, kWgradTap = 8;  // per vector FMA; per tap and strip

// Returns the vectors that pack or unpack handle per plane for a row of `cols` columns. The phases of a row are handled
// together. The last columns, which do not fill a vector, cost four vectors each where they are few, else as much as
// `lanes` columns.
double row_vectors(const TilingProblem& p, int64_t cols, int64_t phases) {
  const int64_t rest = cols * phases % p.lanes;
  const int64_t last = rest == 0 ? 0 : rest <= few_elements(p.lanes) ? 4 * rest : p.lanes;
  return double(cols * phases - rest + last) / double(phases);
}

}  // namespace

bool reads_taps_once(const Tiling& t, const PlanShape& shape) {
  constexpr int64_t kMostIndirect = 6;
  return t.groups == 1 && t.tile_h == t.rows && t.tile_w == t.cols && t.rows * t.cols <= kMostIndirect &&
         shape.depth == 1 && shape.width == 1;
}

int64_t joined_blocks(const TilingProblem& p, const Tiling& t) {
  constexpr int64_t kWindowBytes = 48 * 1024;
  const Geometry& g = *p.geometry;
  const int64_t rows = t.rows, cols = p.register_tiles ? t.cols : t.tile_w;
  const int64_t window = p.fold ? rows * g.w.window(p.shape.adjoint, cols)
                                : g.h.window(p.shape.adjoint, rows) * g.w.window(p.shape.adjoint, cols);
  const int64_t bytes = window * p.lanes * p.element * p.shape.block_channels / p.lane_channels;
  return std::clamp<int64_t>(kWindowBytes / bytes, 1, p.shape.span_blocks);
}

Cycles tiling_cycles(const TilingProblem& p, const Tiling& t) {
  const PlanShape& shape = p.shape;
  const Geometry& g = *p.geometry;
  const double outputs = double(t.tile_h) * double(t.tile_w);
  const double pack = double(shape.sources / p.lane_channels * shape.source_phases) * double(t.tile_h + p.reach_h) *
                      row_vectors(p, t.tile_w + p.reach_w, shape.adjoint ? 1 : g.w.stride);
  const double unpack =
      double(shape.targets * shape.width) * double(t.tile_h) * row_vectors(p, t.tile_w, shape.adjoint ? g.w.stride : 1);
  const double taps = double(shape.taps * shape.depth / p.lane_channels), groups = double(t.groups);
  Cycles cycles;
  cycles.pack = groups * kPack * pack;
  if (!p.register_tiles) {
    const double strips = double(ceil_div(t.tile_h, t.rows)), sums = taps * double(shape.width);
    cycles.multiply = groups * sums * kWgradFma * outputs;
    cycles.taps = groups * sums * kWgradTap * strips;
    cycles.pack += groups * kPack * unpack;  // of gy
    return cycles;
  }
  const double register_tiles = double(ceil_div(t.tile_h, t.rows)) * double(t.tile_w / t.cols);
  const double parts = double(shape.width / kWidths[p.width_index]), width = double(kWidths[p.width_index]);
  const double blocks = double(ceil_div(shape.blocks, joined_blocks(p, t)));
  const double segments = std::min(blocks * double(shape.targets), double(shape.taps + shape.targets)) * parts;
  cycles.multiply = groups * taps * parts * kFma * outputs * width;
  cycles.taps = groups * taps * parts * (kTap + kTapRow * double(t.rows)) * register_tiles;
  cycles.targets = groups * segments * (kSegment * register_tiles + kSegmentOutput * outputs * width);
  cycles.unpack = groups * kUnpack * unpack;
  if (!shape.direct) cycles.order = (shape.adjoint && !reads_taps_once(t, shape) ? kOrder : kCode) * taps;
  return cycles;
}

Cycles sparse_conv_cycles(const ConvCall& call) {
  const TilingProblem problem = tiling_problem(call, kernels(), true);
  return tiling_cycles(problem, choose_tiling(problem));
}

}  // namespace sparsegan
