// The decoder of unit numbers. Every plan compiler, and every kernel that reads a support, uses it.
//
// The units of a dense weight are numbered in row-major order over [coarse units, fine units per group, kernel rows,
// kernel columns]. A unit is one weight, or a vector of coarse or fine channels at one kernel position (geometry.h).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "geometry.h"

#ifdef __CUDACC__
#define SPARSEGAN_HOST_DEVICE __host__ __device__
#else
#define SPARSEGAN_HOST_DEVICE
#endif

namespace sparsegan {

template <class Int>
struct Unit {
  Int coarse, fine;  // unit indices, counted over all groups
  Int row, column;   // kernel position
};

// Decodes unit numbers of type Int: int64_t in plan compilers, unsigned in CUDA kernels.
template <class Int>
struct UnitDecoder {
  Int coarse = 1, fine = 1;  // units per group
  Int positions = 1, kernel_w = 1;

  UnitDecoder() = default;
  explicit UnitDecoder(const Geometry& g)
      : coarse(static_cast<Int>(g.coarse_channels_per_group() / g.coarse_vector)),
        fine(static_cast<Int>(g.fine_channels_per_group() / g.fine_vector)),
        positions(static_cast<Int>(g.positions())),
        kernel_w(static_cast<Int>(g.w.kernel)) {}

  SPARSEGAN_HOST_DEVICE Unit<Int> operator()(Int number) const {
    const Int position = number % positions, pair = number / positions, coarse_unit = pair / fine;
    return {coarse_unit, coarse_unit / coarse * fine + pair % fine, position / kernel_w, position % kernel_w};
  }

  // Returns the number of the unit (coarse_unit, fine_unit) at the first kernel position.
  Int number(Int coarse_unit, Int fine_unit) const {
    return (coarse_unit * fine + fine_unit - coarse_unit / coarse * fine) * positions;
  }
};

// A kept unit in one direction of sparse_conv, which reads the source unit and adds to one phase of the target unit.
struct Tap {
  int64_t source, target;  // unit indices, counted over all groups
  int64_t phase;           // phase of the target; 0 from fine to coarse
  int64_t row, column;     // kernel position
};

// Decodes a unit number to the tap of one direction; adjoint: from coarse to fine.
class TapDecoder {
 public:
  TapDecoder(const Geometry& g, bool adjoint) : adjoint_(adjoint), unit_(g), phases_(g.positions()) {
    for (int64_t i = 0; adjoint && i < g.h.kernel; ++i) {
      for (int64_t j = 0; j < g.w.kernel; ++j) phases_[i * g.w.kernel + j] = g.phase(i, j);
    }
  }

  Tap operator()(int32_t number) const {
    const Unit<int64_t> unit = unit_(number);
    const int64_t phase = phases_[unit.row * unit_.kernel_w + unit.column];
    if (adjoint_) return {unit.coarse, unit.fine, phase, unit.row, unit.column};
    return {unit.fine, unit.coarse, phase, unit.row, unit.column};
  }

 private:
  bool adjoint_;
  UnitDecoder<int64_t> unit_;
  std::vector<int64_t> phases_;  // per kernel position
};

// Throws std::invalid_argument where an array of `numbers` is too large for the int32 indices of a plan.
inline void check_plan_size(int64_t numbers) {
  if (numbers >= (int64_t{1} << 31)) {
    throw std::invalid_argument("plan: it would have " + std::to_string(numbers) +
                                " numbers; at most 2147483647 are possible");
  }
}

}  // namespace sparsegan
