// The two ops over whole tensors: choose a tiling, cut the work for threads, keep the workspace.
#pragma once

#include <cstdint>
#include <functional>

#include "../plan/plan.h"
#include "kernels.h"

namespace sparsegan {

enum class DType { float32 = 0, float64 = 1, bfloat16 = 2 };

// The caller's thread pool: run(count, body) calls body(i) for every i < count, in parallel, and returns when all are
// done.
struct Team {
  int64_t threads = 1;
  std::function<void(int64_t, const std::function<void(int64_t)>&)> run;
};

// One call: y and x are contiguous NCHW tensors of `dtype`; y is on the plan's target side, x on its source side.
struct ConvCall {
  const Geometry* geometry = nullptr;
  bool adjoint = false;
  const PlanView* plan = nullptr;
  DType dtype = DType::float32;
  int64_t images = 0;
  int64_t x_height = 0, x_width = 0, y_height = 0, y_width = 0;
  Padding padding = Padding::zeros;            // around x
  int64_t pad_before_h = 0, pad_before_w = 0;  // of it before x; the geometry's padding is then 0
};

// y = bias + gather(x, values), what is not above 0 then multiplied by negative_slope; every element of y is written.
// bias [target channels] may be null.
void gather(const ConvCall& call, const void* x, const void* values, const void* bias, double negative_slope, void* y,
            const Team& team);

// dv[v] = sum of gy * x over the positions where value v joins them; every element of dv [taps * vector] is written.
void wgrad(const ConvCall& call, const void* gy, const void* x, void* dv, const Team& team);

// Modelled cycles of a call on one core, by what they go to. The total chooses the tiling and is what `auto` compares.
struct Cycles {
  double multiply = 0;  // FMAs, their operands from the first-level cache
  double taps = 0;      // a tap's code, offset and value, once a register tile
  double targets = 0;   // a target's loop exit and outputs, once a joined block and register tile
  double pack = 0, unpack = 0;
  double order = 0;  // codes or values brought into the taps' order

  double total() const { return multiply + taps + targets + pack + unpack + order; }
};
Cycles gather_cycles(const ConvCall& call);

// Bytes of scratch memory held by all threads now. It grows to the largest call and is reused.
int64_t workspace_bytes();

}  // namespace sparsegan
