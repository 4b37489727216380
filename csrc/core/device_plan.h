// The compiler of the device plan: support and geometry become taps in the orders that the kernels of csrc/cuda read.
//
// On a GPU, shared memory delivers a quarter of the words that the FMA units could take. A word loaded from it must
// therefore serve several FMAs. A device plan groups sixteen targets (plan.h) into a *bundle* and orders the taps of a
// bundle by the source row that they read, then by column. A kernel loads a segment of the row into registers once.
// From these registers it runs all taps that the targets of the bundle have on the row.
//
// Seen from a target's index q along one axis, a tap reads source index
//     (q * step + offset) * spread + phase.
// From coarse to fine, step and spread are 1. From fine to coarse with stride 1 or 2, step is the stride and spread is
// 1. In these cases one segment serves all kernel columns. From fine to coarse with a larger stride, a kernel reads one
// phase plane at a time: step is 1 and spread is the stride. Offsets within kWindow of a common start are a *band*. One
// source channel x row band x column band is a *slab*: the part of the source that a kernel stages at a time.
//
// In memory a device plan is one int32 array. Its size depends only on the geometry and the number of taps.
//     bands        [row bands * column bands, 4]  row start and phase, column start and phase
//     first        [bundles * slabs + 1]          first tap of (bundle, slab)
//     codes        [taps]                         uint32: ((slab * 8 + row) * 8 + column) * 16 + slot, with the row and
//                                                 column within the bands and the target's slot within the bundle
//     value_index  [taps]                         index into the support of each tap
//     starts       [targets + 1]                  first unit of a target, for kernels that take targets one by one
// From coarse to fine only, two more arrays hold the support sorted by target. (From fine to coarse, the support itself
// is sorted by target.)
//     units        [taps]                         number of each unit
//     places       [taps]                         index into the support of each unit
//
// Kernels do not trust a device plan. A full check would cost one pass per call, so the kernels clamp every index that
// they read from the plan to the tensors instead (csrc/cuda/NOTES.md).
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"

namespace sparsegan {

inline constexpr int64_t kBundle = 16;                  // targets per bundle
inline constexpr int64_t kWindow = 8;                   // rows or columns of a band
inline constexpr int64_t kFour = 4;                     // columns per copy; column bands start at multiples of it
inline constexpr int64_t kMaxSlabs = int64_t{1} << 22;  // a code has 32 bits, less 3 for row, 3 for column, 4 for slot

// The bands of one axis: the source offsets that its kernel indices read.
struct Bands {
  int64_t step = 1, spread = 1;
  int64_t reach = 1;                    // the largest place + 1
  std::vector<int64_t> starts, phases;  // per band
  std::vector<int64_t> band, place;     // per kernel index: offset = starts[band] + place

  int64_t count() const { return static_cast<int64_t>(starts.size()); }
  // Returns the bands of an axis; their starts are multiples of `align`. Throws std::invalid_argument where an offset
  // is too large.
  static Bands of(const Axis& axis, bool adjoint, int64_t align);
};

struct DevicePlanShape {
  bool adjoint = false;
  int64_t taps = 0;
  int64_t groups = 1;
  int64_t target_phases = 1;  // targets per target channel
  int64_t group_sources = 0;  // source channels per group
  int64_t group_targets = 0;  // targets per group
  Bands rows, columns;

  int64_t bands() const { return rows.count() * columns.count(); }
  int64_t slabs() const { return group_sources * bands(); }
  int64_t bundles() const { return groups * group_bundles(); }
  int64_t group_bundles() const { return (group_targets + kBundle - 1) / kBundle; }
  int64_t targets() const { return groups * group_targets; }

  int64_t first_at() const { return 4 * bands(); }
  int64_t codes_at() const { return first_at() + bundles() * slabs() + 1; }
  int64_t value_index_at() const { return codes_at() + taps; }
  int64_t starts_at() const { return value_index_at() + taps; }
  int64_t units_at() const { return starts_at() + targets() + 1; }
  int64_t places_at() const { return units_at() + taps; }
  int64_t size() const { return units_at() + (adjoint ? 2 * taps : 0); }
};

// Returns the shape of a device plan. Throws std::invalid_argument for a geometry that the kernels do not take: a unit
// has several weights, or a number is too large.
DevicePlanShape device_plan_shape(const Geometry& geometry, bool adjoint, int64_t taps);

// Writes a device plan, `device_plan_shape(...).size()` numbers, to `out`. `support` must have passed check_support.
void compile_device_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t taps, int32_t* out);

}  // namespace sparsegan
