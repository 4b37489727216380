#include "vector_plan.h"

#include <algorithm>
#include <compare>
#include <vector>

#include "unit.h"

namespace sparsegan {

VectorPlanShape vector_plan_shape(const Geometry& g, bool adjoint, int64_t units) {
  VectorPlanShape shape;
  shape.units = units;
  shape.depth = adjoint ? g.coarse_vector : g.fine_vector;
  shape.lanes = shape.depth > 1 ? kDeepBlock : 1;
  const int64_t targets = adjoint ? g.fine_channels : g.coarse_channels;
  const int64_t block = (adjoint ? g.fine_vector : g.coarse_vector) * shape.lanes;
  shape.blocks = (targets + block - 1) / block;
  shape.phases = adjoint ? g.phases() : 1;
  shape.kernel_w = g.w.kernel;
  check_plan_size(shape.size());
  return shape;
}

void compile_vector_plan(const Geometry& g, bool adjoint, const int32_t* support, int64_t units, int32_t* out) {
  const VectorPlanShape shape = vector_plan_shape(g, adjoint, units);
  for (int64_t j = 0; j < g.w.kernel; ++j) {
    out[2 * j] = static_cast<int32_t>(adjoint ? -g.w.shift(j) : g.w.shift(j));
    out[2 * j + 1] = static_cast<int32_t>(adjoint ? 0 : g.w.phase(j));
  }

  // One read of a source unit, by one target channel of a deep block or by the unit of a wide block. The plan is sorted
  // by these fields, in their order.
  struct Read {
    int64_t segment, source, row, lane;
    int32_t unit;
    auto operator<=>(const Read&) const = default;
    bool same_tap(const Read& other) const {
      return segment == other.segment && source == other.source && row == other.row;
    }
  };
  const TapDecoder decode(g, adjoint);
  std::vector<Read> reads(static_cast<size_t>(units));
  for (int64_t v = 0; v < units; ++v) {
    const Tap tap = decode(support[v]);
    const int64_t block = tap.target / shape.lanes;
    reads[v] = {(block * shape.phases + tap.phase) * shape.kernel_w + tap.column, tap.source, tap.row,
                tap.target % shape.lanes, static_cast<int32_t>(v)};
  }
  std::sort(reads.begin(), reads.end());

  int32_t* const first = out + shape.first_at();
  int32_t* const channel = out + shape.channel_at();
  int32_t* const row = out + shape.row_at();
  int32_t* const unit = out + shape.unit_at();
  std::fill(channel, unit, 0);  // the unused tails
  std::fill(unit, out + shape.size(), -1);
  int64_t taps = 0, segment = 0;
  const Read* before = nullptr;
  for (const Read& read : reads) {
    if (!before || !read.same_tap(*before)) {
      for (; segment <= read.segment; ++segment) first[segment] = static_cast<int32_t>(taps);
      channel[taps] = static_cast<int32_t>(read.source * shape.depth);
      row[taps] = static_cast<int32_t>(adjoint ? -g.h.shift(read.row) : g.h.offset(read.row));
      ++taps;
    }
    unit[(taps - 1) * shape.lanes + read.lane] = read.unit;
    before = &read;
  }
  for (; segment <= shape.segments(); ++segment) first[segment] = static_cast<int32_t>(taps);
}

}  // namespace sparsegan
