// The two ops over whole tensors: choose a tiling, cut the work for threads, keep the workspace.
#pragma once

#include <cstdint>
#include <functional>

#include "../core/call.h"
#include "../core/plan.h"
#include "kernels.h"

namespace sparsegan {

enum class DType { float32 = 0, float64 = 1, bfloat16 = 2 };

// The caller's thread pool: run(count, body) calls body(i) for every i < count, in parallel, and returns when all are
// done.
struct Team {
  int64_t threads = 1;
  std::function<void(int64_t, const std::function<void(int64_t)>&)> run;
};

// InstanceNorm of what a sparse_conv wrote, as the affine map that a later pack applies: found while it is written.
// y * scale + shift has mean bias and standard deviation weight in every image and channel.
struct Norm {
  const void* weight = nullptr;  // [channels] of the panel's type; null: 1
  const void* bias = nullptr;    // null: 0
  double eps = 0;
  void* scale = nullptr;  // [images][channels] of the panel's type, rows image_stride apart; null: no norm
  void* shift = nullptr;
  int64_t image_stride = 0;
};

// One call: y and x are NCHW tensors of `dtype` with contiguous images; y is on the plan's target side, x on its source
// side.
struct ConvCall : Call {
  const PlanView* plan = nullptr;
  DType dtype = DType::float32;
  Padding padding = Padding::zeros;                // around x
  int64_t pad_before_h = 0, pad_before_w = 0;      // of it before x; the geometry's padding is then 0
  int64_t x_image_stride = 0, y_image_stride = 0;  // elements; 0: images lie side by side
  // What only sparse_conv does:
  Prologue prologue = {};  // of x
  Epilogue epilogue = {};  // of y
  Norm norm = {};          // of y, after that
  int64_t shuffle = 1;     // PixelShuffle: y has channels / shuffle^2, each as many times higher and wider
};

// y = bias + sparse_conv(x, values), changed as the call says; every element of y is written. bias [target channels]
// may be null.
void sparse_conv(const ConvCall& call, const void* x, const void* values, const void* bias, void* y, const Team& team);

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
Cycles sparse_conv_cycles(const ConvCall& call);

// One tensor of a pointwise call: NCHW, its images contiguous and image_stride elements apart.
struct Operand {
  const void* x = nullptr;
  int64_t image_stride = 0;
  Prologue prologue;
};

// y = a, or a + b where b is not null, each by its own prologue, then the curve; nearest upsampling by `repeat` in both
// directions.
// y may be a's or b's own memory where repeat is 1.
void pointwise(DType dtype, const Operand& a, const Operand* b, Curve curve, int64_t images, int64_t channels,
               int64_t height, int64_t width, int64_t repeat, void* y, int64_t y_image_stride, const Team& team);

// Nanoseconds that all threads have spent in sparse_conv's parts since the process began.
struct PartTimes {
  int64_t pack = 0, multiply = 0, unpack = 0, order = 0;
};
PartTimes part_times();

constexpr int64_t kHugePage = 2 << 20;

// Asks for huge pages where whole ones lie in the memory and the system gives them.
void prefer_huge_pages(void* data, int64_t bytes);

// Bytes of scratch memory held by all threads now. It grows to the largest call and is reused.
int64_t workspace_bytes();

}  // namespace sparsegan
