#include "taps.h"

#include <atomic>

#include "cost_model.h"

namespace sparsegan {
namespace {

// Writes the table of offsets: code -> panel elements from the span's first plane.
void write_offsets(const ConvCall& c, const ConvSetup& s, int32_t* out) {
  const Geometry& g = *c.geometry;
  const PlanShape& shape = c.plan->shape;
  const int64_t channels = std::min(shape.span_channels(), shape.sources);
  const int64_t sign = c.adjoint ? -1 : 1;
  for (int64_t i = 0, position = 0; i < g.h.kernel; ++i) {
    for (int64_t j = 0; j < g.w.kernel; ++j, ++position) {
      const int64_t phase = c.adjoint ? 0 : g.phase(i, j);
      const int64_t row = sign * g.h.shift(i) - s.x.first_h, col = sign * g.w.shift(j) - s.x.first_w;
      const int64_t at = phase * s.x.plane + (row * s.x.cols + col) * s.tiling.lanes;
      for (int64_t channel = 0; channel < channels; ++channel) {
        const int64_t plane = channel / s.x.lane_channels * shape.source_phases;
        out[channel * g.positions() + position] = static_cast<int32_t>(plane * s.x.plane + at);
      }
    }
  }
}

// Writes the codes of the kept units of targets [first, last) to `out`, in the order of the support. Returns false
// where a unit does not belong to the span in which the plan's rows have it.
bool write_codes(const Kernels& k, const PlanView& plan, int64_t first, int64_t last, uint16_t* out) {
  const PlanShape& shape = plan.shape;
  const int64_t positions = shape.positions, depth = shape.depth;
  bool good = true;
  for (int64_t target = first; target < last; ++target) {
    const int32_t* const rows = plan.rows + target * shape.blocks;
    for (int64_t b = 0; b < shape.blocks; b += shape.span_blocks) {
      const int64_t end_block = std::min(b + shape.span_blocks, shape.blocks);
      const int64_t begin = rows[b], end = rows[end_block];
      const int64_t limit =
          (std::min(end_block * shape.block_channels, shape.sources) - b * shape.block_channels) / depth * positions;
      // The number of the span's first unit, counted on from the target's group where that unit is in another group.
      const int64_t base = plan.units.number(target, b * shape.block_channels / depth);
      if (begin < end)
        good &= k.codes(plan.support + begin, end - begin, static_cast<int32_t>(base), out + begin) < limit;
    }
  }
  return good;
}

// Writes one code per lane of source channels of each unit. by_unit: the codes of `units` count source units, not
// channels. The loop runs backwards because `units` and `out` may be the same array.
void deepen_codes(const PlanShape& shape, int64_t lane_channels, bool by_unit, const uint16_t* units, uint16_t* out) {
  const int64_t lanes = shape.depth / lane_channels;
  for (int64_t t = shape.taps - 1; t >= 0; --t) {
    int64_t code = units[t];
    if (by_unit) code = code / shape.positions * shape.depth * shape.positions + code % shape.positions;
    for (int64_t k = lanes - 1; k >= 0; --k) {
      out[t * lanes + k] = static_cast<uint16_t>(code + k * lane_channels * shape.positions);
    }
  }
}

}  // namespace

TapLayout::TapLayout(const ConvSetup& s, const PlanView& plan, bool with_values, WorkspaceLayout& layout)
    : codes(!plan.codes || plan.shape.depth > 1),
      values(with_values &&
             (kDTypes[s.dtype].bytes != s.element || (plan.value_index && !reads_taps_once(s.tiling, plan.shape)))) {
  constexpr int64_t kCodes = int64_t{1} << 16, kReadAhead = 2;
  codes_at = layout.add(codes ? (plan.shape.taps * plan.shape.depth + kReadAhead) * 2 : 0);
  values_at = layout.add(values ? plan.shape.taps * plan.shape.depth * plan.shape.width * s.element : 0);
  offsets_at = layout.add(kCodes * 4);
}

Taps resolve_taps(const ConvCall& c, const ConvSetup& s, const TapLayout& layout, char* workspace, const void* values,
                  const ThreadPool& pool) {
  const PlanView& plan = *c.plan;
  const PlanShape& shape = plan.shape;
  const int64_t vector = shape.depth * shape.width;
  const int64_t threads = shape.taps < 1 << 15 ? 1 : std::max<int64_t>(1, pool.threads);
  std::atomic<bool> good{true};
  auto* const offsets = reinterpret_cast<int32_t*>(workspace + layout.offsets_at);
  write_offsets(c, s, offsets);
  Taps taps{plan.codes, static_cast<const char*>(values), offsets};
  auto* const codes = reinterpret_cast<uint16_t*>(workspace + layout.codes_at);
  if (!plan.codes) {
    parallel_for_ranges(pool, threads, shape.targets, [&](int64_t first, int64_t last) {
      if (!write_codes(s.k, plan, first, last, codes)) good = false;
    });
    taps.codes = codes;
  }
  if (!good) bad_plan("its rows give a kept unit to a target that is not its own");
  if (shape.depth > 1) {
    deepen_codes(shape, s.x.lane_channels, !plan.codes, taps.codes, codes);
    taps.codes = codes;
  }
  if (layout.values) {
    char* const out = workspace + layout.values_at;
    parallel_for_ranges(pool, threads, shape.taps, [&](int64_t first, int64_t last) {
      if (!s.k.gather_values[s.dtype](plan.value_index, first, last, shape.taps, vector, values, out)) good = false;
    });
    taps.values = out;
  }
  if (plan.value_index && values && !layout.values) {
    uint32_t most = 0;
    for (int64_t t = 0; t < shape.taps; ++t) most = std::max(most, static_cast<uint32_t>(plan.value_index[t]));
    if (shape.taps > 0 && most >= shape.taps) good = false;
    taps.value_index = plan.value_index;
  }
  if (!good) bad_plan("a tap names a value that is not there");
  return taps;
}

std::vector<int64_t> cut_targets(const PlanView& plan, int64_t parts, int64_t together) {
  const PlanShape& shape = plan.shape;
  std::vector<int64_t> cuts{0};
  const int64_t total = shape.taps + 2 * shape.targets;
  for (int64_t target = 0; target < shape.targets; target += together) {
    const int64_t before = plan.rows[target * shape.blocks] + 2 * target;
    if (before >= total * static_cast<int64_t>(cuts.size()) / parts) cuts.push_back(target);
  }
  cuts.resize(static_cast<size_t>(parts) + 1, shape.targets);
  cuts.back() = shape.targets;
  return cuts;
}

}  // namespace sparsegan
