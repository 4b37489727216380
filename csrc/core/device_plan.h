// The plan compiler for GPUs: support + geometry -> taps in the orders that csrc/cuda reads.
//
// On a GPU shared memory feeds a quarter of the words that the FMA units could take, so whatever is loaded from it must
// serve several FMAs. A device plan therefore takes the targets (plan.h) by eights, a *bundle*, and orders a bundle's
// taps by the source row they read: a kernel loads a segment of that row into registers once and runs from there every
// tap that the bundle's eight targets have on it.
//
// Seen from a target's index q along one axis, a tap reads source index
//     (q * step + offset) * spread + phase.
// Coarse -> fine and for strides 1 and 2, step is the source's stride over the target and spread is 1: one segment
// serves all kernel columns. Larger strides are read a phase plane at a time (step 1). Offsets that lie within kWindow
// of each other are a *band*; one source channel x row band x column band is a *slab*: what a kernel stages at a time.
//
// In memory a device plan is one int32 array. Its size depends on geometry and number of taps alone.
//     bands        [row bands * column bands, 4]  row start and phase, column start and phase
//     first        [bundles * slabs + 1]          first tap of (bundle, slab)
//     codes        [taps]                         uint32: ((slab * 8 + row) * 8 + slot) * 8 + column, the row and the
//                                                 column within the bands, the slot of the target within the bundle
//     value_index  [taps]                         index into the support of each tap
//     starts       [targets + 1]                  first tap of a target, for kernels that take targets one by one
// and, coarse -> fine only, the support in the order of those (fine -> coarse it is in that order itself),
//     units        [taps]
//     places       [taps]                         index into the support of each of those units
//
// Kernels do not trust a device plan, and checking all of it at each call would cost a pass: they clamp what they read
// from it to the tensors instead (csrc/cuda/NOTES.md).
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"

namespace sparsegan {

inline constexpr int64_t kBundle = 8;                   // targets
inline constexpr int64_t kWindow = 8;                   // rows or columns a band reaches over
inline constexpr int64_t kFour = 4;                     // columns copied at a time: column bands start at a multiple
inline constexpr int64_t kMaxSlabs = int64_t{1} << 23;  // 32 bits less 3 each for row, slot and column

// The source indices that the kernel positions of one axis reach.
struct Bands {
  int64_t step = 1, spread = 1;
  int64_t reach = 1;                    // the largest place + 1
  std::vector<int64_t> starts, phases;  // per band
  std::vector<int64_t> band, place;     // per kernel index: offset = starts[band] + place

  int64_t count() const { return static_cast<int64_t>(starts.size()); }
  // Starts are multiples of `align`. Throws std::invalid_argument where a kernel reaches too far.
  static Bands of(const Axis& axis, bool adjoint, int64_t align);
};

struct DevicePlanShape {
  bool adjoint = false;
  int64_t taps = 0;
  int64_t groups = 1;
  int64_t target_phases = 1;  // targets per channel
  int64_t group_sources = 0;  // channels
  int64_t group_targets = 0;
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

// Throws std::invalid_argument for a geometry that the kernels do not take: vectors, or numbers that are too large.
DevicePlanShape device_plan_shape(const Geometry& geometry, bool adjoint, int64_t taps);

// Compiles `device_plan_shape(...).size()` numbers into `out`. `support` must have passed check_support.
void compile_device_plan(const Geometry& geometry, bool adjoint, const int32_t* support, int64_t taps, int32_t* out);

}  // namespace sparsegan
