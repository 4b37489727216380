#include "cost_model.h"

#include <algorithm>
#include <limits>

#include "isa.h"

namespace sparsegan {
namespace {

// Cycles of the parts of a sparse_conv on one core, for vectors of a size. Each row is a non-negative least-squares fit
// to timings of random tilings, and csrc/cpu/NOTES.md says of which, and how well the row predicts them.
struct Costs {
  double fma;     // per vector FMA while the window of a register tile stays in the first-level cache
  double window;  // per vector FMA and KiB of the window above small_window, up to large_window
  double small_window, large_window;  // KiB
  double tap, tap_row;                // per tap and register tile; per row of it
  double segment;         // per target, run of joined blocks and register tile: mostly a mispredicted loop exit
  double segment_output;  // per vector of outputs of it
  double pack, unpack;    // per vector
};
constexpr Costs k32Bytes{0.60, 0.0095, 14, 64, 1.15, 0.21, 13, 2.4, 11.7, 12.3};  // AVX2; NEON takes them over
constexpr Costs k64Bytes{0.63, 0.0087, 16, 96, 0.24, 0, 27, 2.1, 11.7, 12.3};     // AVX-512
// The kernel that reads codes: more per tap and register tile, and per segment.
constexpr double kCodeTap = 1.5, kCodeSegment = 22;
// Per tap and call. Codes from the support; values in the order of codes; records; records through the value index.
constexpr double kCode = 1.7, kOrder = 7.1, kRecord = 8, kRecordThroughIndex = 20;
// wgrad: an FMA needs a little more than one load, and the lanes of each tap are summed once per strip.
constexpr double kWgradFma = 0.62, kWgradTap = 8;  // per vector FMA; per tap and strip

const Costs& costs_of(const TilingProblem& p) { return p.lanes * p.element > 32 ? k64Bytes : k32Bytes; }

// Returns the KiB that a register tile, or a strip, reads of one block of the plan.
double window_of_block(const TilingProblem& p, const Tiling& t) {
  const Geometry& g = *p.geometry;
  const int64_t rows = t.rows, cols = p.register_tiles ? t.cols : t.tile_w;
  const int64_t window = p.fold ? rows * g.w.window(p.shape.adjoint, cols)
                                : g.h.window(p.shape.adjoint, rows) * g.w.window(p.shape.adjoint, cols);
  return double(window * p.lanes * p.element * p.shape.block_channels) / double(1024 * p.lane_channels);
}

// The cycles of a sparse_conv's multiplications that depend on the number of joined blocks. A larger window leaves the
// first-level cache; a smaller one has more segments, each with a loop exit and a pass over its outputs.
struct Segments {
  double misses, segments;  // vector FMAs that miss, as cycles; cycles of segments

  Segments(const TilingProblem& p, const Tiling& t, int64_t joined) {
    const PlanShape& shape = p.shape;
    const Costs& costs = costs_of(p);
    const double outputs = double(t.tile_h * t.tile_w * kWidths[p.width_index]);
    const double register_tiles = double(ceil_div(t.tile_h, t.rows)) * double(t.tile_w / t.cols);
    const double parts = double(shape.width / kWidths[p.width_index]), groups = double(t.groups);
    const double taps = double(shape.taps * shape.depth / p.lane_channels);
    const double window = window_of_block(p, t) * double(joined);
    const double miss =
        costs.window * std::clamp(window - costs.small_window, 0.0, costs.large_window - costs.small_window);
    misses = groups * taps * parts * outputs * miss;
    const double runs = double(ceil_div(shape.blocks, joined) * shape.targets);
    const double exit = costs.segment + (reads_codes(t, shape) ? kCodeSegment : 0);
    segments = groups * parts * std::min(runs, double(shape.taps + shape.targets)) *
               (exit * register_tiles + costs.segment_output * outputs);
  }
};

// Returns the vectors that pack or unpack handle per plane for a row of `cols` columns. The phases of a row are handled
// together. The last columns, which do not fill a vector, cost four vectors each where they are few, else as much as
// `lanes` columns.
double row_vectors(const TilingProblem& p, int64_t cols, int64_t phases) {
  const int64_t rest = cols * phases % p.lanes;
  const int64_t last = rest == 0 ? 0 : rest <= few_elements(p.lanes) ? 4 * rest : p.lanes;
  return double(cols * phases - rest + last) / double(phases);
}

}  // namespace

bool reads_codes(const Tiling& t, const PlanShape& shape) {
  const int64_t register_tiles = t.groups * ceil_div(t.tile_h, t.rows) * (t.tile_w / t.cols);
  return register_tiles <= (shape.adjoint && !shape.direct ? 6 : 3);
}

bool reads_through_index(const Tiling& t, const PlanShape& shape) {
  constexpr int64_t kMostOutputs = 6;  // of the register tiles that run several taps at once
  return t.rows * t.cols <= kMostOutputs && shape.depth == 1 && shape.width == 1;
}

int64_t joined_blocks(const TilingProblem& p, const Tiling& t) {
  constexpr double kWgradWindow = 48;  // KiB
  const int64_t most = p.shape.span_blocks;
  if (!p.register_tiles)
    return std::clamp<int64_t>(static_cast<int64_t>(kWgradWindow / window_of_block(p, t)), 1, most);
  int64_t best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t joined = 1; joined <= most; joined += 1 + joined / 8) {
    const Segments s(p, t, joined);
    if (s.misses + s.segments >= least) continue;
    least = s.misses + s.segments;
    best = joined;
  }
  return best;
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
  const Costs& costs = costs_of(p);
  Cycles cycles;
  cycles.pack = groups * costs.pack * pack;
  if (!p.register_tiles) {
    const double strips = double(ceil_div(t.tile_h, t.rows)), sums = taps * double(shape.width);
    cycles.multiply = groups * sums * kWgradFma * outputs;
    cycles.taps = groups * sums * kWgradTap * strips;
    cycles.pack += groups * costs.pack * unpack;  // of gy
    return cycles;
  }
  const double register_tiles = double(ceil_div(t.tile_h, t.rows)) * double(t.tile_w / t.cols);
  const double parts = double(shape.width / kWidths[p.width_index]), width = double(kWidths[p.width_index]);
  const Segments segments(p, t, joined_blocks(p, t));
  const bool codes = reads_codes(t, shape);
  cycles.multiply = groups * taps * parts * costs.fma * outputs * width + segments.misses;
  cycles.taps =
      groups * taps * parts * (costs.tap + costs.tap_row * double(t.rows) + (codes ? kCodeTap : 0)) * register_tiles;
  cycles.targets = segments.segments;
  cycles.unpack = groups * costs.unpack * unpack;
  const bool indexed = shape.adjoint && !shape.direct;
  cycles.order = taps * (shape.has_codes() ? 0 : kCode);
  if (!codes) {
    cycles.order += taps * parts * (indexed ? kRecordThroughIndex : kRecord);
  } else if (indexed && !reads_through_index(t, shape)) {
    cycles.order += taps * kOrder;
  }
  return cycles;
}

Cycles sparse_conv_cycles(const ConvCall& call) {
  const TilingProblem problem = tiling_problem(call, kernels(), true);
  return tiling_cycles(problem, choose_tiling(problem));
}

}  // namespace sparsegan
