// The compiler of the vector plan: support and geometry become taps in the order that the Triton kernels of kernels/
// read.
//
// A sparse_conv reads sources and writes targets. Its *width* is the number of target channels per unit, its *depth* is
// the number of source channels per unit. A vector of target channels makes a sparse_conv *wide* (width V, depth 1). A
// vector of source channels makes a sparse_conv *deep* (width 1, depth V). A Triton program writes one block of target
// channels: in a wide sparse_conv the channels of one unit, in a deep sparse_conv kDeepBlock channels.
//
// In memory a vector plan is one int32 array. Its size depends only on the geometry and the number of units.
//     columns  [kernel width, 2]                     shift and source phase of each kernel column
//     first    [blocks * phases * kernel width + 1]  first tap of each segment (block, phase, kernel column)
//     channel  [units]                               source channel of a tap, the first one of its unit
//     row      [units]                               source row of a tap minus (target row * source step)
//     unit     [units, 1]                            wide: the unit of a tap
//              [units, kDeepBlock]                   deep: per target channel of the block, the unit of a tap or -1
//
// A tap of a deep block is a pair (source unit, kernel position) that at least one channel of the block keeps. There
// may be fewer taps than units; the tails of the arrays are then unused. The taps of a segment are sorted by source
// channel, then by row. As in plan.h, only the fine grid has phases: from coarse to fine the targets have phases. The
// shift and phase of a column are those of geometry.h, seen from the target:
//     fine -> coarse   source column = (target column + shift) * stride + phase
//     coarse -> fine   source column =  target column of the phase + shift (the negated shift of geometry.h)
//
// The kernels do not trust a vector plan: they clamp every index that they read from it to the tensors.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace sparsegan {

inline constexpr int64_t kDeepBlock = 16;  // target channels per deep block: the fewest that fill a tensor core's tile

struct VectorPlanShape {
  int64_t units = 0;
  int64_t depth = 1;   // source channels per unit
  int64_t lanes = 1;   // most units per tap
  int64_t blocks = 0;  // blocks of target channels
  int64_t phases = 1;  // phases per target channel
  int64_t kernel_w = 1;

  int64_t segments() const { return blocks * phases * kernel_w; }

  int64_t first_at() const { return 2 * kernel_w; }
  int64_t channel_at() const { return first_at() + segments() + 1; }
  int64_t row_at() const { return channel_at() + units; }
  int64_t unit_at() const { return row_at() + units; }
  int64_t size() const { return unit_at() + units * lanes; }
};

// Returns the shape of a vector plan. Throws std::invalid_argument where the plan is too large for int32 indices.
VectorPlanShape vector_plan_shape(const Geometry& geometry, bool adjoint, int64_t units);

// Writes a vector plan, `vector_plan_shape(...).size()` numbers, to `out`. `support` must have passed check_support.
void compile_vector_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t units, int32_t* out);

}  // namespace sparsegan
