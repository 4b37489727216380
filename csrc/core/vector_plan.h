// The plan compiler for the Triton kernels: support + geometry -> taps in the order that kernels/ reads.
//
// A sparse_conv reads sources and writes targets. Its *width* is the number of target channels that a unit has, its
// *depth* the number of source channels: a vector on the target side makes a sparse_conv *wide* (width V, depth 1), one
// on the source side *deep* (width 1, depth V). A program writes one block of target channels: those of one unit, or
// kDeepBlock channels of a deep sparse_conv.
//
// In memory a vector plan is one int32 array. Its size depends on geometry and number of units alone.
//     columns  [kernel width, 2]                     shift and source phase of each kernel column
//     first    [blocks * phases * kernel width + 1]  first tap of each segment (block, phase, kernel column)
//     channel  [units]                               source channel of a tap, the first one of its unit
//     row      [units]                               source row of a tap, less (target row * source step)
//     unit     [units, 1]                            wide: the unit that the tap is
//              [units, kDeepBlock]                   deep: the unit that serves each target channel of the block, or -1
//
// A tap of a deep block is a (source unit, kernel position) that any of its channels keeps. There may be fewer taps
// than units, and then the tail is unused. Taps of a segment are sorted by source channel, then by row. Phases sit on
// the fine side, as in plan.h: targets have them coarse -> fine. A column's shift and phase are those of geometry.h,
// from the target's side:
//     fine -> coarse   source column = (target column + shift) * stride + phase
//     coarse -> fine   source column =  target column of the phase + shift
//
// The kernels clamp all that they read from a plan to the tensors, whatever it says.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace sparsegan {

inline constexpr int64_t kDeepBlock = 16;  // target channels: the fewest that fill a tensor core's tile

struct VectorPlanShape {
  int64_t units = 0;
  int64_t depth = 1;   // source channels per unit
  int64_t lanes = 1;   // units that a tap may stand for
  int64_t blocks = 0;  // of target channels
  int64_t phases = 1;  // per target channel
  int64_t kernel_w = 1;

  int64_t segments() const { return blocks * phases * kernel_w; }

  int64_t first_at() const { return 2 * kernel_w; }
  int64_t channel_at() const { return first_at() + segments() + 1; }
  int64_t row_at() const { return channel_at() + units; }
  int64_t unit_at() const { return row_at() + units; }
  int64_t size() const { return unit_at() + units * lanes; }
};

// Throws std::invalid_argument where int32 cannot count the plan's numbers.
VectorPlanShape vector_plan_shape(const Geometry& geometry, bool adjoint, int64_t units);

// Compiles `vector_plan_shape(...).size()` numbers into `out`. `support` must have passed check_support.
void compile_vector_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t units, int32_t* out);

}  // namespace sparsegan
