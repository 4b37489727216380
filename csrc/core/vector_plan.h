// The compiler of the vector plan: support and geometry become taps in the order that the Triton kernels of kernels/
// read.
//
// A sparse_conv reads sources and writes targets. Its *width* is the number of target channels per unit, its *depth* is
// the number of source channels per unit. A vector of target channels makes a sparse_conv *wide* (width V, depth 1). A
// vector of source channels makes a sparse_conv *deep* (width 1, depth V). The two run by different kernels, so they
// have different plans. In memory a vector plan is one int32 array. Its size depends only on the geometry and the
// number of units.
//
// A wide plan groups taps by block (the target channels of one unit), phase and kernel column:
//     columns  [kernel width, 2]                     shift and source phase of each kernel column
//     first    [blocks * phases * kernel width + 1]  first tap of each segment (block, phase, kernel column)
//     channel  [units]                               source channel of a tap
//     row      [units]                               source row of a tap minus (target row * source step)
//     unit     [units]                               unit of a tap
// The taps of a segment are sorted by source channel, then by row.
//
// A deep plan is for two steps. The first step multiplies each unit with its source channels at all source positions,
// which gives one *product* per unit. The second step adds shifted products. Products are sorted by source unit, the
// taps of a target channel and phase by source unit, then by kernel position:
//     columns  [kernel width, 2]         as above
//     first    [source units + 1]        first product of each source unit
//     unit     [units]                   unit of a product
//     taps     [targets * phases + 1]    first tap of each (target channel, phase)
//     product  [units]                   product of a tap
//     row      [units]                   as above
//     column   [units]                   kernel column of a tap
//
// As in plan.h, only the fine grid has phases: from coarse to fine the targets have phases. The shift and phase of a
// column are those of geometry.h, seen from the target:
//     fine -> coarse   source column = (target column + shift) * stride + phase
//     coarse -> fine   source column =  target column of the phase + shift (the negated shift of geometry.h)
//
// The kernels do not trust a vector plan: they clamp every index that they read from it to the tensors.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace sparsegan {

struct VectorPlanShape {
  int64_t units = 0;
  bool deep = false;
  int64_t sources = 0;  // source units
  int64_t blocks = 0;   // blocks of target channels; a deep plan has one channel per block
  int64_t phases = 1;   // phases per target channel
  int64_t kernel_w = 1;

  int64_t first_at() const { return 2 * kernel_w; }
  // Of a wide plan.
  int64_t segments() const { return blocks * phases * kernel_w; }
  int64_t channel_at() const { return first_at() + segments() + 1; }
  // Of a deep plan.
  int64_t product_unit_at() const { return first_at() + sources + 1; }
  int64_t taps_at() const { return product_unit_at() + units; }
  int64_t product_at() const { return taps_at() + blocks * phases + 1; }
  // Of both: three numbers per tap end a plan.
  int64_t size() const { return (deep ? product_at() : channel_at()) + 3 * units; }
};

// Returns the shape of a vector plan. Throws std::invalid_argument where the plan is too large for int32 indices.
VectorPlanShape vector_plan_shape(const Geometry& geometry, bool adjoint, int64_t units);

// Writes a vector plan, `vector_plan_shape(...).size()` numbers, to `out`. `support` must have passed check_support.
void compile_vector_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t units, int32_t* out);

}  // namespace sparsegan
