// The taps of a call in the form in which the kernels read them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "conv_setup.h"
#include "workspace.h"

namespace sparsegan {

struct Taps {
  const uint16_t* codes = nullptr;
  const char* values = nullptr;  // sparse_conv only
  const int32_t* offsets = nullptr;
  const int32_t* value_index = nullptr;  // null where the values are in the order of the taps
};

// The places in the workspace of the arrays of Taps that are made for a call.
struct TapLayout {
  bool codes, values;  // whether the array is made
  int64_t codes_at, values_at, offsets_at;

  TapLayout(const ConvSetup& setup, const PlanView& plan, bool with_values, WorkspaceLayout& layout);
};

// Returns the taps of a call. From fine to coarse, the codes are made from the support. From coarse to fine, the values
// are gathered through the value index, except where the kernel reads them through it (reads_taps_once). Support and
// value index are checked: throws std::invalid_argument. values is null for wgrad.
Taps resolve_taps(const ConvCall& call, const ConvSetup& setup, const TapLayout& layout, char* workspace,
                  const void* values, const ThreadPool& pool);

// Cuts the targets into `parts` ranges of about equal work and returns the cuts: range i is [cuts[i], cuts[i + 1]).
// Each run of `together` targets stays in one range.
std::vector<int64_t> cut_targets(const PlanView& plan, int64_t parts, int64_t together);

// Calls body(taps, x, is_first, is_last) for targets [first, last) and each run of joined source blocks. x is the first
// plane of the run's span in x_panel. is_first and is_last are true for the first and the last run of the plan.
template <class Body>
void for_each_join(const ConvSetup& s, const PlanView& plan, const Taps& taps, const char* x_panel, int64_t first,
                   int64_t last, const Body& body) {
  const PlanShape& shape = plan.shape;
  TapRange range{nullptr,
                 shape.blocks,
                 0,
                 shape.depth / s.x.lane_channels,
                 shape.width,
                 shape.target_phases,
                 taps.codes,
                 taps.offsets,
                 taps.value_index,
                 first,
                 last};
  for (int64_t span = 0; span < shape.blocks; span += shape.span_blocks) {
    const int64_t span_end = std::min(span + shape.span_blocks, shape.blocks);
    const int64_t channels = span * shape.block_channels / s.x.lane_channels;
    const char* const x = x_panel + channels * shape.source_phases * s.x_plane();
    for (int64_t b = span; b < span_end; b += s.joined) {
      range.rows = plan.rows + b;
      range.joined = std::min(s.joined, span_end - b);
      body(range, x, b == 0, b + range.joined == shape.blocks);
    }
  }
}

}  // namespace sparsegan
