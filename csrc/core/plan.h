// The plan compiler: support + geometry -> taps grouped by target channel, phase and source block.
//
// A plan drives one sparse_conv: target plane <- source planes. Read forward it goes fine -> coarse (a convolution),
// its adjoint goes coarse -> fine (a transposed convolution, or a convolution's input gradient). Phases sit on the fine
// side: fine source channels are `phases` planes each, fine target channels are `phases` separate targets.
//
// A tap is one kept unit seen from its target. In memory a plan is one int32 array, so that it can travel as a plain
// tensor:
//     rows         [targets * blocks + 1]            first tap of (target, source block)
// and, coarse -> fine only,
//     codes        [taps] as uint16, two per int32   source channel within the span * positions + kernel position
//     value_index  [taps]                            index into the support of each tap
// Fine -> coarse the support itself is in the order of the taps and holds what a code says: nothing is stored per tap.
//
// A direct plan is for values that lie in the taps' order, as those of a finished network can. Either way it has codes,
// and no value index: a call has nothing left to do per tap.
//
// A block is the finest cut of the source channels; a call joins as many as suit its tiles. A span is a run of blocks
// that 16 bits can number. Codes do not depend on the shape at hand: a table of offsets, made once per call, turns them
// into addresses, and checking them against that table's size is all it takes to make a plan memory-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"
#include "unit.h"

namespace sparsegan {

struct PlanShape {
  bool adjoint = false;
  int64_t positions = 1;
  int64_t sources = 0;         // source channels
  int64_t source_phases = 1;   // planes per source channel
  int64_t depth = 1;           // source channels per unit
  int64_t targets = 0;         // target units * target_phases
  int64_t target_phases = 1;   // planes per target channel
  int64_t width = 1;           // target channels per unit
  int64_t block_channels = 1;  // source channels per block
  int64_t blocks = 0;
  int64_t span_blocks = 1;  // blocks per span
  int64_t taps = 0;
  bool direct = false;

  int64_t target_channels() const { return targets / target_phases * width; }
  int64_t span_channels() const { return span_blocks * block_channels; }
  int64_t spans() const { return (blocks + span_blocks - 1) / span_blocks; }
  int64_t segments() const { return targets * blocks; }
  bool has_codes() const { return adjoint || direct; }
  bool has_value_index() const { return adjoint && !direct; }
  // Kernels read two codes ahead: behind a plan's last one there is the value index, or a number that nobody needs.
  int64_t size() const {
    return segments() + 1 + (has_codes() ? (taps + 1) / 2 : 0) + (has_value_index() ? taps : direct ? 1 : 0);
  }
};

// The shape of a plan for `taps` kept units, the same whatever their positions.
PlanShape plan_shape(const Geometry& geometry, bool adjoint, int64_t taps);
PlanShape direct_plan_shape(const Geometry& geometry, bool adjoint, int64_t taps);

// Compiles `plan_shape(...).size()` numbers into `out`. `support` must have passed check_support for geometry.units().
void compile_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t taps, int32_t* out);

// The same for `direct_plan_shape`; `value_index` [taps] gets each tap's index into the support.
void compile_direct_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t taps, int32_t* out,
                         int32_t* value_index);

// A plan as the kernels read it: pointers into the array.
struct PlanView {
  PlanShape shape;
  const int32_t* support = nullptr;
  const int32_t* rows = nullptr;
  const uint16_t* codes = nullptr;  // null where the plan has none
  const int32_t* value_index = nullptr;
  UnitDecoder<int64_t> units;  // of the support
};

// Checks an untrusted array's rows and codes; throws std::invalid_argument. The support and the value index are checked
// where they are read (csrc/cpu/taps.cpp).
// An array of a direct plan's size is taken for one where `direct` allows it.
PlanView view_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t taps, const int32_t* data,
                   int64_t size, bool direct = false);

[[noreturn]] void bad_plan(const char* what);

}  // namespace sparsegan
