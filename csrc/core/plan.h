// The compiler of the CPU plan: support and geometry become taps, grouped by target channel, phase and source block.
//
// A plan drives one sparse_conv, which computes target planes from source planes. A plan goes from fine to coarse (a
// convolution). An adjoint plan goes from coarse to fine (a transposed convolution, or the input gradient of a
// convolution). Only the fine grid has phases: each phase of a fine source channel is one plane, and each phase of a
// fine target channel counts as one target.
//
// A tap is one kept unit seen from its target. In memory a plan is one int32 array, so that it can be passed as a plain
// tensor:
//     rows         [targets * blocks + 1]            first tap of (target, source block)
// From coarse to fine only, two more arrays follow:
//     codes        [taps] as uint16, two per int32   (channel - first of its span) * positions + kernel position
//     value_index  [taps]                            index into the support of each tap
// From fine to coarse, the support itself is in the order of the taps, and the codes follow from it. The plan then
// stores nothing per tap.
//
// A direct plan is for values that lie in the order of the taps, as the values of a finished network can. A direct plan
// has codes in both directions and no value index, so that a call has no work left per tap.
//
// A block is the smallest group of source channels; a call joins as many blocks as suit its tiles. A span is a run of
// blocks whose codes fit 16 bits. Codes do not depend on the size of the images: a table of offsets, made once per
// call, turns codes into addresses. A plan is therefore memory-safe once its codes are checked against the table's
// size.
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
  // Kernels read two codes ahead. Behind the last code lies the value index or, in a direct plan, one unused number.
  int64_t size() const {
    return segments() + 1 + (has_codes() ? (taps + 1) / 2 : 0) + (has_value_index() ? taps : direct ? 1 : 0);
  }
};

// Return the shape of a plan for `taps` kept units. It does not depend on the positions of the units.
PlanShape plan_shape(const Geometry& geometry, bool adjoint, int64_t taps);
PlanShape direct_plan_shape(const Geometry& geometry, bool adjoint, int64_t taps);

// Writes a plan, `plan_shape(...).size()` numbers, to `out`. `support` must have passed check_support for
// geometry.units().
void compile_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t taps, int32_t* out);

// Writes a direct plan, `direct_plan_shape(...).size()` numbers, to `out`, and the index into the support of each tap
// to `value_index` [taps].
void compile_direct_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t taps, int32_t* out,
                         int32_t* value_index);

// A plan as the kernels read it: pointers into the plan's array and the support.
struct PlanView {
  PlanShape shape;
  const int32_t* support = nullptr;
  const int32_t* rows = nullptr;
  const uint16_t* codes = nullptr;  // null where the plan has none
  const int32_t* value_index = nullptr;
  UnitDecoder<int64_t> units;  // for the support
};

// Checks the rows and codes of an untrusted array and returns its view. Throws std::invalid_argument. The support and
// the value index are checked where they are read (csrc/cpu/taps.cpp). `direct` permits a plan of either form, and the
// size decides.
PlanView view_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t taps, const int32_t* data,
                   int64_t size, bool direct = false);

[[noreturn]] void bad_plan(const char* what);

}  // namespace sparsegan
