// The plan compiler: support + geometry -> taps grouped by source block, target channel and phase.
//
// A plan drives one gather: target plane <- source planes. Read forward it goes fine -> coarse (a convolution), its
// adjoint goes coarse -> fine (a transposed convolution, or a convolution's input gradient). Phases sit on the fine
// side: fine source channels are `phases` planes each, fine target channels are `phases` separate targets.
//
// In memory a plan is one int32 array, so that it can travel as a plain tensor:
//     rows   [blocks * targets + 1]   first tap of (source block, target), block-major
//     codes  [taps] as uint16, two an int32   channel within the block * positions + kernel position
//     order  [taps]                   index into the values (support order) of each tap
// Codes are relative to the block so that a table of block_channels * positions offsets, made once a call for the shape
// at hand, turns a code into an address; checking the codes against that table's size is all it takes to make a plan
// memory-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"

namespace sparsegan {

struct PlanShape {
  int64_t sources = 0;         // source channels
  int64_t source_phases = 1;   // planes a source channel
  int64_t targets = 0;         // target planes: channels * phases
  int64_t block_channels = 1;  // source channels a block
  int64_t blocks = 0;
  int64_t taps = 0;

  int64_t segments() const { return blocks * targets; }
  int64_t size() const { return segments() + 1 + (taps + 1) / 2 + taps; }
};

// The shape of a plan for `taps` kept weights, the same whatever their positions.
PlanShape plan_shape(const Geometry& geometry, bool adjoint, int64_t taps);

// Compiles `plan_shape(...).size()` numbers into `out`. `support` must have passed check_support for
// geometry.weight_size().
void compile_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t taps, int32_t* out);

// A plan as the kernels read it: pointers into the array.
struct PlanView {
  PlanShape shape;
  const int32_t* rows = nullptr;
  const uint16_t* codes = nullptr;
  const int32_t* order = nullptr;
};

// Checks every number of an untrusted array that the kernels will use as an index; throws std::invalid_argument.
PlanView view_plan(const Geometry& geometry, bool adjoint, int64_t taps, const int32_t* data, int64_t size);

}  // namespace sparsegan
