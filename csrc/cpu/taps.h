// A call's taps in the form in which the kernels read them.
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

// The arrays of them that are made for a call and lie in the workspace.
struct TapLayout {
  bool codes, values;
  int64_t codes_at, values_at, offsets_at;

  TapLayout(const ConvSetup& setup, const PlanView& plan, bool with_values, WorkspaceLayout& layout);
};

// Fine -> coarse the codes come from the support, coarse -> fine the values from their index. Both are checked here:
// throws std::invalid_argument. values: null for wgrad, which has none.
Taps resolve_taps(const ConvCall& call, const ConvSetup& setup, const TapLayout& layout, char* workspace,
                  const void* values, const ThreadPool& pool);

// Cuts the targets into `parts` ranges of about equal work, range i being [cuts[i], cuts[i + 1]). `together` targets in
// a row are never parted.
std::vector<int64_t> cut_targets(const PlanView& plan, int64_t parts, int64_t together);

// Runs body(taps, x, is_first) for targets [first, last) and each run of source blocks that are joined, where x is the
// first plane of the blocks' span in x_panel.
template <class Body>
void for_each_join(const ConvSetup& s, const PlanView& plan, const Taps& taps, const char* x_panel, int64_t first,
                   int64_t last, const Body& body) {
  const PlanShape& shape = plan.shape;
  TapRange range{nullptr,      shape.blocks,     0,     shape.depth, shape.width, shape.target_phases, taps.codes,
                 taps.offsets, taps.value_index, first, last};
  for (int64_t span = 0; span < shape.blocks; span += shape.span_blocks) {
    const int64_t span_end = std::min(span + shape.span_blocks, shape.blocks);
    const char* const x = x_panel + span * shape.block_channels * shape.source_phases * s.x_plane();
    for (int64_t b = span; b < span_end; b += s.joined) {
      range.rows = plan.rows + b;
      range.joined = std::min(s.joined, span_end - b);
      body(range, x, b == 0);
    }
  }
}

}  // namespace sparsegan
