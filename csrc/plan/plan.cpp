#include "plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sparsegan {
namespace {

// Rows (or columns) of the source that a register tile of `tile` outputs reads along one axis, all source phases
// together.
int64_t window(const Axis& axis, bool adjoint, int64_t tile) {
  if (adjoint) return tile + axis.shift(axis.kernel - 1) - axis.shift(0);
  int64_t total = 0;
  for (int64_t phase = 0; phase < axis.stride; ++phase) {
    int64_t first = 0, last = -1;
    for (int64_t i = 0; i < axis.kernel; ++i) {
      if (axis.phase(i) != phase) continue;
      if (last < first) first = axis.shift(i);
      last = axis.shift(i);
    }
    if (last >= first) total += tile + last - first;
  }
  return total;
}

// Source channels a block: enough taps a target to pay for loading and storing its outputs, few enough for a register
// tile's window of the block to stay near the core. Of 8, 16, 24, 32, 40, 48, 64 and 96 KiB, 32 to 48 were the fastest
// on AVX2 with 32 KiB of first-level cache.
int64_t block_channels(const Geometry& g, bool adjoint) {
  constexpr int64_t kWindowBytes = 40 * 1024;
  constexpr int64_t kTileRows = 3, kTileCols = 6, kVectorBytes = 32;
  const int64_t bytes = window(g.h, adjoint, kTileRows) * window(g.w, adjoint, kTileCols) * kVectorBytes;
  const int64_t sources = adjoint ? g.coarse_channels : g.fine_channels;
  const int64_t most = std::min<int64_t>(sources, (int64_t{1} << 16) / g.positions());
  return std::clamp<int64_t>(kWindowBytes / bytes, 1, most);
}

// One kept weight, as source and target channel and kernel position.
struct Tap {
  int64_t source, target, position;
};

class TapReader {
 public:
  TapReader(const Geometry& g, bool adjoint) : g_(g), adjoint_(adjoint), phase_(g.positions()) {
    for (int64_t i = 0; i < g.h.kernel; ++i) {
      for (int64_t j = 0; j < g.w.kernel; ++j) {
        phase_[i * g.w.kernel + j] = g.h.phase(i) * g.w.stride + g.w.phase(j);
      }
    }
  }

  Tap read(int32_t weight) const {
    const int64_t position = weight % g_.positions();
    const int64_t pair = weight / g_.positions();
    const int64_t coarse = pair / g_.fine_channels_per_group();
    const int64_t group = coarse / g_.coarse_channels_per_group();
    const int64_t fine = group * g_.fine_channels_per_group() + pair % g_.fine_channels_per_group();
    if (adjoint_) return {coarse, fine * g_.phases() + phase_[position], position};
    return {fine, coarse, position};
  }

 private:
  const Geometry& g_;
  bool adjoint_;
  std::vector<int64_t> phase_;
};

[[noreturn]] void bad_plan(const std::string& what) {
  throw std::invalid_argument("plan: " + what +
                              "; a plan must come from sparsegan.plan for the same support and geometry");
}

}  // namespace

PlanShape plan_shape(const Geometry& g, bool adjoint, int64_t taps) {
  PlanShape shape;
  shape.sources = adjoint ? g.coarse_channels : g.fine_channels;
  shape.source_phases = adjoint ? 1 : g.phases();
  shape.targets = adjoint ? g.fine_channels * g.phases() : g.coarse_channels;
  shape.block_channels = block_channels(g, adjoint);
  shape.blocks = (shape.sources + shape.block_channels - 1) / shape.block_channels;
  shape.taps = taps;
  if (shape.size() >= (int64_t{1} << 31)) {
    throw std::invalid_argument("plan: it would have " + std::to_string(shape.size()) +
                                " numbers; at most 2147483647 are possible");
  }
  return shape;
}

void compile_plan(const Geometry& g, bool adjoint, const int32_t* support, int64_t taps, int32_t* out) {
  const PlanShape shape = plan_shape(g, adjoint, taps);
  const TapReader reader(g, adjoint);
  int32_t* rows = out;
  int32_t* order = out + shape.segments() + 1 + (taps + 1) / 2;
  auto* codes = reinterpret_cast<uint16_t*>(out + shape.segments() + 1);
  if (taps % 2 == 1) codes[taps] = 0;  // the unused half of the last pair: equal supports give equal plans, bit for bit

  // A counting sort by segment; stable, so a segment keeps the support's order.
  const auto segment = [&](const Tap& tap) { return tap.source / shape.block_channels * shape.targets + tap.target; };
  std::fill(rows, rows + shape.segments() + 1, 0);
  for (int64_t v = 0; v < taps; ++v) ++rows[segment(reader.read(support[v])) + 1];
  for (int64_t s = 0; s < shape.segments(); ++s) rows[s + 1] += rows[s];
  std::vector<int32_t> next(rows, rows + shape.segments());
  for (int64_t v = 0; v < taps; ++v) {
    const Tap tap = reader.read(support[v]);
    const int32_t slot = next[segment(tap)]++;
    codes[slot] = static_cast<uint16_t>(tap.source % shape.block_channels * g.positions() + tap.position);
    order[slot] = static_cast<int32_t>(v);
  }
}

PlanView view_plan(const Geometry& g, bool adjoint, int64_t taps, const int32_t* data, int64_t size) {
  PlanView view;
  view.shape = plan_shape(g, adjoint, taps);
  const PlanShape& shape = view.shape;
  if (size != shape.size())
    bad_plan("it has " + std::to_string(size) + " numbers where " + std::to_string(shape.size()) + " are expected");
  view.rows = data;
  view.codes = reinterpret_cast<const uint16_t*>(data + shape.segments() + 1);
  view.order = data + shape.segments() + 1 + (taps + 1) / 2;

  // Branch-free passes that a compiler vectorises: this runs at every call.
  bool sorted = view.rows[0] == 0 && view.rows[shape.segments()] == taps;
  for (int64_t s = 0; s < shape.segments(); ++s) sorted &= view.rows[s] <= view.rows[s + 1];
  if (!sorted) bad_plan("its rows do not rise from 0 to the number of values");
  for (int64_t b = 0; b < shape.blocks; ++b) {
    const int64_t channels = std::min(shape.block_channels, shape.sources - b * shape.block_channels);
    uint16_t most = 0;
    for (int32_t t = view.rows[b * shape.targets]; t < view.rows[(b + 1) * shape.targets]; ++t)
      most = std::max(most, view.codes[t]);
    if (most >= channels * g.positions())
      bad_plan("a tap of block " + std::to_string(b) + " has code " + std::to_string(most));
  }
  uint32_t most = 0;
  for (int64_t t = 0; t < taps; ++t) most = std::max(most, static_cast<uint32_t>(view.order[t]));
  if (taps > 0 && most >= taps) bad_plan("a tap names value " + std::to_string(static_cast<int32_t>(most)));
  return view;
}

}  // namespace sparsegan
