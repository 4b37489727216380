// The taps of a call in the form in which the kernels read them.
#pragma once

#include <cstdint>
#include <vector>

#include "conv_setup.h"
#include "workspace.h"

namespace sparsegan {

// A run of source blocks of one span that the kernels work through as one.
struct Join {
  int64_t first, last;  // blocks [first, last)
  int64_t span;         // first block of the span
};

// The taps of a call: records, join by join, or codes, target by target, whose values lie in an array of their own.
struct Taps {
  std::vector<Join> joins;
  // Records; null where the taps are codes:
  const char* records = nullptr;
  const int32_t* record_rows = nullptr;  // [joins * targets + 1] first record of each (join, target)
  int64_t parts = 1;                     // a unit's target channels take this many targets of the records
  // Codes:
  const uint16_t* codes = nullptr;
  const int32_t* offsets = nullptr;
  const char* values = nullptr;          // sparse_conv only
  const int32_t* value_index = nullptr;  // null where the values are in the order of the taps
};

// The places in the workspace of the arrays of Taps that are made for a call.
struct TapLayout {
  bool with_values;             // false for wgrad, which has none
  bool codes, values, records;  // whether the array is made
  int64_t codes_at, values_at, offsets_at, records_at, record_rows_at;

  TapLayout(const ConvSetup& setup, const PlanView& plan, bool with_values, WorkspaceLayout& layout);
};

// Returns the taps of a call. Where each tap serves many register tiles, the taps become records: one pointer then
// walks through offsets and values as the kernel needs them. Elsewhere (reads_codes) the kernel reads codes and values
// where they lie. Support and value index are checked: throws std::invalid_argument. values is null for wgrad.
Taps resolve_taps(const ConvCall& call, const ConvSetup& setup, const TapLayout& layout, char* workspace,
                  const void* values, const ThreadPool& pool);

// Cuts the targets into `parts` ranges of about equal work and returns the cuts: range i is [cuts[i], cuts[i + 1]).
// Each run of `together` targets stays in one range.
std::vector<int64_t> cut_targets(const PlanView& plan, int64_t parts, int64_t together);

// Returns the records of targets [first, last) in join j. Both are whole units.
RecordRange records_of(const PlanShape& shape, const Taps& taps, int64_t j, int64_t first, int64_t last);

// Returns the codes of targets [first, last) in a join.
TapRange codes_of(const ConvSetup& setup, const PlanView& plan, const Taps& taps, const Join& join, int64_t first,
                  int64_t last);

// Returns the offset in a panel of x of the first plane of a join's span, in bytes.
int64_t span_offset(const ConvSetup& setup, const PlanShape& shape, const Join& join);

}  // namespace sparsegan
