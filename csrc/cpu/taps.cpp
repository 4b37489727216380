#include "taps.h"

#include <algorithm>
#include <atomic>
#include <cstring>

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

std::vector<Join> joins_of(const PlanShape& shape, int64_t joined) {
  std::vector<Join> joins;
  for (int64_t span = 0; span < shape.blocks; span += shape.span_blocks) {
    const int64_t end = std::min(span + shape.span_blocks, shape.blocks);
    for (int64_t b = span; b < end; b += joined) joins.push_back({b, std::min(b + joined, end), span});
  }
  return joins;
}

// Writes the first record of each (join, target).
void write_record_rows(const PlanView& plan, const Taps& taps, int64_t lanes, int32_t* out) {
  const PlanShape& shape = plan.shape;
  int64_t at = 0;
  for (const Join& join : taps.joins) {
    for (int64_t unit = 0; unit < shape.targets; unit += shape.target_phases) {
      for (int64_t part = 0; part < taps.parts; ++part) {
        for (int64_t target = unit; target < unit + shape.target_phases; ++target) {
          const int32_t* const rows = plan.rows + target * shape.blocks;
          *out++ = static_cast<int32_t>(at);
          at += (rows[join.last] - rows[join.first]) * lanes;
        }
      }
    }
  }
  *out = static_cast<int32_t>(at);
}

// Writes the records of the units of targets [first, last), with the values of W target channels each. Word has the
// size of a panel element. Returns false where a tap names a value that is not there.
template <class Word, int W>
bool write_records(const PlanView& plan, const Taps& taps, int64_t lanes, int64_t first, int64_t last, char* out) {
  struct Record {
    Word offset, values[W];
  };
  const PlanShape& shape = plan.shape;
  const int64_t width = shape.width, phases = shape.target_phases;
  const auto* const values = reinterpret_cast<const Word*>(taps.values);
  const auto units = static_cast<uint64_t>(shape.taps);
  bool good = true;
  for (int64_t j = 0; j < std::ssize(taps.joins); ++j) {
    const int32_t* const record_rows = taps.record_rows + j * shape.targets * taps.parts;
    for (int64_t target = first; target < last; ++target) {
      const int32_t* const rows = plan.rows + target * shape.blocks;
      const int64_t begin = rows[taps.joins[j].first] * lanes, end = rows[taps.joins[j].last] * lanes;
      const int64_t place = target / phases * taps.parts * phases + target % phases;
      for (int64_t part = 0; part < taps.parts; ++part) {
        Record* record = reinterpret_cast<Record*>(out) + record_rows[place + part * phases];
        const Word* const own = values + part * W;
        const auto write = [&](int64_t tap, int64_t value) {
          record->offset = static_cast<uint32_t>(taps.offsets[taps.codes[tap]]);
          for (int w = 0; w < W; ++w) record->values[w] = own[value * width + w];
          ++record;
        };
        if (!taps.value_index) {
          for (int64_t tap = begin; tap < end; ++tap) write(tap, tap);
        } else {
          for (int64_t tap = begin; tap < end; ++tap) {
            const auto unit = static_cast<uint64_t>(taps.value_index[tap / lanes]);
            good &= unit < units;
            write(tap, unit < units ? static_cast<int64_t>(unit) * lanes + tap % lanes : 0);
          }
        }
      }
    }
  }
  return good;
}

using WriteRecords = decltype(&write_records<uint32_t, 1>);
// By the size of a panel element (4 or 8 bytes) and the index of the register tile's width in kWidths.
constexpr WriteRecords kWriteRecords[2][kWidthCount] = {
    {write_records<uint32_t, kWidths[0]>, write_records<uint32_t, kWidths[1]>, write_records<uint32_t, kWidths[2]>},
    {write_records<uint64_t, kWidths[0]>, write_records<uint64_t, kWidths[1]>, write_records<uint64_t, kWidths[2]>}};

}  // namespace

TapLayout::TapLayout(const ConvSetup& s, const PlanView& plan, bool with_values, WorkspaceLayout& layout)
    : with_values(with_values),
      codes(!plan.codes || plan.shape.depth > 1),
      records(with_values && !reads_codes(s.tiling, plan.shape)) {
  constexpr int64_t kCodes = int64_t{1} << 16, kReadAhead = 2;
  const PlanShape& shape = plan.shape;
  values = with_values && (kDTypes[s.dtype].bytes != s.element ||
                           (plan.value_index && !records && !reads_through_index(s.tiling, shape)));
  const int64_t taps = shape.taps * shape.depth / s.x.lane_channels, parts = shape.width / kWidths[s.width];
  codes_at = layout.add(codes ? (taps + kReadAhead) * 2 : 0);
  values_at = layout.add(values ? shape.taps * shape.depth * shape.width * s.element : 0);
  offsets_at = layout.add(kCodes * 4);
  const int64_t record = (1 + kWidths[s.width]) * s.element;
  records_at = layout.add(records ? (taps * parts + kReadAhead) * record : 0);
  // There is at most one join per block.
  record_rows_at = layout.add(records ? (shape.targets * parts * shape.blocks + 1) * 4 : 0);
}

Taps resolve_taps(const ConvCall& c, const ConvSetup& s, const TapLayout& layout, char* workspace, const void* values,
                  const ThreadPool& pool) {
  const PlanView& plan = *c.plan;
  const PlanShape& shape = plan.shape;
  const int64_t threads = shape.taps < 1 << 15 ? 1 : std::max<int64_t>(1, pool.threads);
  std::atomic<bool> good{true};
  auto* const offsets = reinterpret_cast<int32_t*>(workspace + layout.offsets_at);
  write_offsets(c, s, offsets);
  Taps taps;
  taps.joins = joins_of(shape, s.joined);
  taps.values = static_cast<const char*>(values);
  taps.codes = plan.codes;
  taps.offsets = offsets;
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
  if (!layout.with_values) return taps;
  taps.value_index = plan.value_index;
  if (layout.values) {
    char* const out = workspace + layout.values_at;
    parallel_for_ranges(pool, threads, shape.taps, [&](int64_t first, int64_t last) {
      const int64_t vector = shape.depth * shape.width;
      if (!s.k.gather_values[s.dtype](plan.value_index, first, last, shape.taps, vector, values, out)) good = false;
    });
    taps.values = out;
    taps.value_index = nullptr;
  }
  if (!good) bad_plan("a tap names a value that is not there");
  if (layout.records) {
    const int64_t lanes = shape.depth / s.x.lane_channels;
    auto* const rows = reinterpret_cast<int32_t*>(workspace + layout.record_rows_at);
    taps.parts = shape.width / kWidths[s.width];
    write_record_rows(plan, taps, lanes, rows);
    taps.record_rows = rows;
    char* const records = workspace + layout.records_at;
    parallel_for_ranges(pool, threads, shape.targets, [&](int64_t first, int64_t last) {
      const bool all = kWriteRecords[s.element == 8][s.width](plan, taps, lanes, first, last, records);
      if (!all) good = false;
    });
    taps.records = records;
  } else if (taps.value_index) {
    uint32_t most = 0;
    for (int64_t t = 0; t < shape.taps; ++t) most = std::max(most, static_cast<uint32_t>(plan.value_index[t]));
    if (shape.taps > 0 && most >= shape.taps) good = false;
  }
  if (!good) bad_plan("a tap names a value that is not there");
  return taps;
}

RecordRange records_of(const PlanShape& shape, const Taps& taps, int64_t j, int64_t first, int64_t last) {
  return {taps.records, taps.record_rows + j * shape.targets * taps.parts, shape.target_phases, first * taps.parts,
          last * taps.parts};
}

TapRange codes_of(const ConvSetup& s, const PlanView& plan, const Taps& taps, const Join& join, int64_t first,
                  int64_t last) {
  const PlanShape& shape = plan.shape;
  return {plan.rows + join.first,
          shape.blocks,
          join.last - join.first,
          shape.depth / s.x.lane_channels,
          shape.width,
          shape.target_phases,
          taps.codes,
          taps.offsets,
          taps.value_index,
          first,
          last};
}

int64_t span_offset(const ConvSetup& s, const PlanShape& shape, const Join& join) {
  return join.span * shape.block_channels / s.x.lane_channels * shape.source_phases * s.x_plane();
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
