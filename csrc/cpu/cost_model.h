// The cost of a call: what chooses its tiling, and what `auto` compares.
#pragma once

#include <cstdint>

#include "conv.h"
#include "tiling.h"

namespace sparsegan {

// Modelled cycles of a call on one core, by what they go to.
struct Cycles {
  double multiply = 0;  // FMAs, their operands from the first-level cache
  double taps = 0;      // a tap's code, offset and value, once per register tile
  double targets = 0;   // a target's loop exit and outputs, once per joined block and register tile
  double pack = 0, unpack = 0;
  double order = 0;  // codes or values brought into the order of the taps

  double total() const { return multiply + taps + targets + pack + unpack + order; }
};

// Of a call's sparse_conv with the tiling that it would choose.
Cycles sparse_conv_cycles(const ConvCall& call);

Cycles tiling_cycles(const TilingProblem& problem, const Tiling& tiling);

// Blocks of the plan that a call runs as one: as many as keep the window of a register tile (or strip) near the core,
// within a span.
int64_t joined_blocks(const TilingProblem& problem, const Tiling& tiling);

// Whether a map is so small that each tap serves one register tile, whose kernel reads values through their index
// (kernels/sparse_conv.h): bringing the values into the order of the taps would not pay.
bool reads_taps_once(const Tiling& tiling, const PlanShape& shape);

}  // namespace sparsegan
