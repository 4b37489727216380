#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace sparsegan {
namespace {

constexpr int64_t kCodes = int64_t{1} << 16;

// Returns the source units per block. A call joins blocks until the window of a register tile suits its first-level
// cache (joined_blocks in cost_model.cpp). Fine blocks leave the call the choice, and cost a row entry each per target.
int64_t block_units(const Geometry& g, bool adjoint, int64_t source_units, int64_t depth) {
  constexpr int64_t kWindowBytes = 10 * 1024;
  constexpr int64_t kTileRows = 3, kTileCols = 6, kVectorBytes = 32;
  const int64_t bytes = g.h.window(adjoint, kTileRows) * g.w.window(adjoint, kTileCols) * kVectorBytes;
  const int64_t most = std::min<int64_t>(source_units, kCodes / (g.positions() * depth));
  return std::clamp<int64_t>(kWindowBytes / (bytes * depth), 1, most);
}

PlanShape shape_of(const Geometry& g, bool adjoint, int64_t taps, bool direct) {
  PlanShape shape;
  shape.direct = direct;
  shape.adjoint = adjoint;
  shape.positions = g.positions();
  shape.sources = adjoint ? g.coarse_channels : g.fine_channels;
  shape.source_phases = adjoint ? 1 : g.phases();
  shape.depth = adjoint ? g.coarse_vector : g.fine_vector;
  shape.target_phases = adjoint ? g.phases() : 1;
  shape.width = adjoint ? g.fine_vector : g.coarse_vector;
  shape.targets = (adjoint ? g.fine_channels : g.coarse_channels) / shape.width * shape.target_phases;
  const int64_t source_units = shape.sources / shape.depth;
  shape.block_channels = block_units(g, adjoint, source_units, shape.depth) * shape.depth;
  shape.blocks = (shape.sources + shape.block_channels - 1) / shape.block_channels;
  shape.span_blocks = std::min(shape.blocks, kCodes / (shape.positions * shape.block_channels));
  shape.taps = taps;
  check_plan_size(shape.size());
  return shape;
}

void compile(const PlanShape& shape, const Geometry& g, const int32_t* support, int32_t* out, int32_t* value_index) {
  const int64_t taps = shape.taps;
  const TapDecoder decode(g, shape.adjoint);
  const int64_t block_units = shape.block_channels / shape.depth;
  const auto segment = [&](const Tap& tap) {
    return (tap.target * shape.target_phases + tap.phase) * shape.blocks + tap.source / block_units;
  };
  int32_t* rows = out;
  std::fill(rows, rows + shape.segments() + 1, 0);
  for (int64_t v = 0; v < taps; ++v) ++rows[segment(decode(support[v])) + 1];
  for (int64_t s = 0; s < shape.segments(); ++s) rows[s + 1] += rows[s];
  if (!shape.has_codes()) return;

  // A stable counting sort by segment: the taps of a segment keep the order of the support.
  auto* codes = reinterpret_cast<uint16_t*>(out + shape.segments() + 1);
  // Unused numbers are set to 0, so that equal supports give plans that are equal to the last bit.
  if (taps % 2 == 1) codes[taps] = 0;
  if (shape.direct) out[shape.size() - 1] = 0;
  std::vector<int32_t> next(rows, rows + shape.segments());
  for (int64_t v = 0; v < taps; ++v) {
    const Tap tap = decode(support[v]);
    const int32_t slot = next[segment(tap)]++;
    const int64_t channel = tap.source * shape.depth % shape.span_channels();
    codes[slot] = static_cast<uint16_t>(channel * shape.positions + tap.row * g.w.kernel + tap.column);
    value_index[slot] = static_cast<int32_t>(v);
  }
}

}  // namespace

void bad_plan(const char* what) {
  throw std::invalid_argument(std::string("plan: ") + what +
                              "; a plan must come from sparsegan.ops.plan for the same support and geometry");
}

PlanShape plan_shape(const Geometry& g, bool adjoint, int64_t taps) { return shape_of(g, adjoint, taps, false); }

PlanShape direct_plan_shape(const Geometry& g, bool adjoint, int64_t taps) { return shape_of(g, adjoint, taps, true); }

void compile_plan(const Geometry& g, bool adjoint, const int32_t* support, int64_t taps, int32_t* out) {
  const PlanShape shape = plan_shape(g, adjoint, taps);
  compile(shape, g, support, out, shape.has_value_index() ? out + shape.segments() + 1 + (taps + 1) / 2 : nullptr);
}

void compile_direct_plan(const Geometry& g, bool adjoint, const int32_t* support, int64_t taps, int32_t* out,
                         int32_t* value_index) {
  compile(direct_plan_shape(g, adjoint, taps), g, support, out, value_index);
}

PlanView view_plan(const Geometry& g, bool adjoint, const int32_t* support, int64_t taps, const int32_t* data,
                   int64_t size, bool direct) {
  PlanView view;
  view.shape = direct ? direct_plan_shape(g, adjoint, taps) : plan_shape(g, adjoint, taps);
  if (size != view.shape.size()) view.shape.direct = false;
  const PlanShape& shape = view.shape;
  if (size != shape.size()) {
    bad_plan(("it has " + std::to_string(size) + " numbers where " + std::to_string(shape.size()) + " are expected")
                 .c_str());
  }
  view.units = UnitDecoder<int64_t>(g);
  view.support = support;
  view.rows = data;
  bool sorted = view.rows[0] == 0 && view.rows[shape.segments()] == taps;
  for (int64_t s = 0; s < shape.segments(); ++s) sorted &= view.rows[s] <= view.rows[s + 1];
  if (!sorted) bad_plan("its rows do not rise from 0 to the number of kept units");
  if (!shape.has_codes()) return view;

  view.codes = reinterpret_cast<const uint16_t*>(data + shape.segments() + 1);
  if (shape.has_value_index()) view.value_index = data + shape.segments() + 1 + (taps + 1) / 2;
  // The loop has no branch, so that the compiler vectorises it: this check runs at every call.
  const auto check = [&](int64_t first, int64_t last, int64_t channels) {
    uint16_t most = 0;
    for (int64_t t = first; t < last; ++t) most = std::max(most, view.codes[t]);
    if (first < last && most + (shape.depth - 1) * shape.positions >= channels * shape.positions) {
      bad_plan(("a tap has code " + std::to_string(most)).c_str());
    }
  };
  if (shape.spans() == 1) {
    check(0, taps, shape.sources);
  } else {
    for (int64_t target = 0; target < shape.targets; ++target) {
      const int32_t* const of_target = view.rows + target * shape.blocks;
      for (int64_t b = 0; b < shape.blocks; b += shape.span_blocks) {
        const int64_t end = std::min(b + shape.span_blocks, shape.blocks);
        check(of_target[b], of_target[end],
              std::min(end * shape.block_channels, shape.sources) - b * shape.block_channels);
      }
    }
  }
  return view;
}

}  // namespace sparsegan
