// The modelled cost of a call. It decides the tiling, and backend "auto" compares it with the cost of "dense".
#pragma once

#include <cstdint>

#include "conv.h"
#include "tiling.h"

namespace sparsegan {

// Modelled cycles of a call on one core, by kind of work.
struct Cycles {
  double multiply = 0;  // FMAs with operands in the first-level cache
  double taps = 0;      // code, offset and value of each tap, once per register tile
  double targets = 0;   // loop exit and outputs of each target, once per run of joined blocks and register tile
  double pack = 0, unpack = 0;
  double order = 0;  // bringing codes or values into the order of the taps

  double total() const { return multiply + taps + targets + pack + unpack + order; }
};

// Returns the cycles of a sparse_conv call with the tiling that it would choose.
Cycles sparse_conv_cycles(const ConvCall& call);

// Returns the cycles of a call with the given tiling.
Cycles tiling_cycles(const TilingProblem& problem, const Tiling& tiling);

// Returns how many blocks of the plan a call runs as one: as many blocks of one span as keep the window of a register
// tile (or strip) in the core's caches.
int64_t joined_blocks(const TilingProblem& problem, const Tiling& tiling);

// Returns whether there are so few register tiles that the kernel reads codes, because records would cost more than
// they save.
bool reads_codes(const Tiling& tiling, const PlanShape& shape);

// Returns whether the kernel that reads codes takes each value through the plan's value index.
bool reads_through_index(const Tiling& tiling, const PlanShape& shape);

}  // namespace sparsegan
