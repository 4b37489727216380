#include "vector_plan.h"

#include <algorithm>
#include <compare>
#include <numeric>
#include <vector>

#include "unit.h"

namespace sparsegan {

VectorPlanShape vector_plan_shape(const Geometry& g, bool adjoint, int64_t units) {
  VectorPlanShape shape;
  shape.units = units;
  shape.deep = (adjoint ? g.coarse_vector : g.fine_vector) > 1;
  shape.sources = adjoint ? g.coarse_channels / g.coarse_vector : g.fine_channels / g.fine_vector;
  shape.blocks = adjoint ? g.fine_channels / g.fine_vector : g.coarse_channels / g.coarse_vector;
  shape.phases = adjoint ? g.phases() : 1;
  shape.kernel_w = g.w.kernel;
  check_plan_size(shape.size());
  return shape;
}

namespace {

// Writes the first place of each of `groups` groups, and the end of the last one, where `group_of[place]` rises.
template <class GroupOf>
void write_firsts(int64_t groups, int64_t places, GroupOf group_of, int32_t* first) {
  int64_t group = 0;
  for (int64_t place = 0; place < places; ++place) {
    for (; group <= group_of(place); ++group) first[group] = static_cast<int32_t>(place);
  }
  for (; group <= groups; ++group) first[group] = static_cast<int32_t>(places);
}

}  // namespace

void compile_vector_plan(const Geometry& g, bool adjoint, const int32_t* support, int64_t units, int32_t* out) {
  const VectorPlanShape shape = vector_plan_shape(g, adjoint, units);
  for (int64_t j = 0; j < g.w.kernel; ++j) {
    out[2 * j] = static_cast<int32_t>(adjoint ? -g.w.shift(j) : g.w.shift(j));
    out[2 * j + 1] = static_cast<int32_t>(adjoint ? 0 : g.w.phase(j));
  }

  // A wide plan is sorted by these fields, in their order. In a deep plan a group is one (target channel, phase).
  struct Read {
    int64_t group, source, row;
    int32_t column, unit;
    auto operator<=>(const Read&) const = default;
  };
  const TapDecoder decode(g, adjoint);
  std::vector<Read> reads(static_cast<size_t>(units));
  for (int64_t v = 0; v < units; ++v) {
    const Tap tap = decode(support[v]);
    const int64_t target = tap.target * shape.phases + tap.phase;
    reads[v] = {shape.deep ? target : target * shape.kernel_w + tap.column, tap.source, tap.row,
                static_cast<int32_t>(tap.column), static_cast<int32_t>(v)};
  }
  std::sort(reads.begin(), reads.end());

  int32_t* const first = out + shape.first_at();
  int32_t* const source = out + (shape.deep ? shape.product_at() : shape.channel_at());
  int32_t* const row = source + units;
  int32_t* const last = row + units;  // column or unit
  if (shape.deep) {
    std::vector<int32_t> order(static_cast<size_t>(units));  // taps by source unit: the products
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return reads[a].source < reads[b].source; });
    for (int64_t product = 0; product < units; ++product) {
      out[shape.product_unit_at() + product] = reads[order[product]].unit;
      source[order[product]] = static_cast<int32_t>(product);
    }
    write_firsts(shape.sources, units, [&](int64_t product) { return reads[order[product]].source; }, first);
  }
  write_firsts(
      shape.deep ? shape.blocks * shape.phases : shape.segments(), units, [&](int64_t tap) { return reads[tap].group; },
      shape.deep ? out + shape.taps_at() : first);
  for (int64_t tap = 0; tap < units; ++tap) {
    const Read& read = reads[tap];
    if (!shape.deep) source[tap] = static_cast<int32_t>(read.source);
    row[tap] = static_cast<int32_t>(adjoint ? -g.h.shift(read.row) : g.h.offset(read.row));
    last[tap] = shape.deep ? read.column : read.unit;
  }
}

}  // namespace sparsegan
