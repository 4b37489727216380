// sparse_conv and wgrad over whole tensors, implemented in sparse_conv.cpp and wgrad.cpp.
#pragma once

#include <cstdint>

#include "../core/call.h"
#include "../core/plan.h"
#include "instance_norm.h"
#include "kernels/kernels.h"
#include "thread_pool.h"

namespace sparsegan {

// A panel of x that several calls of sparse_conv share, so that what they all read is packed once. `data` holds
// `channels` source channels for each group of tiles. The first `packed` of them are there already; the call packs the
// others of its own sources. All these calls have the same images, sizes, kernel, padding and tile.
struct SharedPanel {
  void* data = nullptr;
  int64_t channels = 0, packed = 0;
  int64_t tile_h = 0, tile_w = 0;  // outputs per tile; 0: the cost model chooses

  bool used() const { return channels > 0; }
};

// One call. x and y are NCHW tensors of `dtype` with contiguous images. x has the plan's sources, y its targets. A
// short precision takes a plan with units of whole lanes of source channels and one target channel, whose values are in
// the order of the taps.
struct ConvCall : Call {
  const PlanView* plan = nullptr;
  DType dtype = DType::float32;
  Padding padding = Padding::zeros;                // around x
  int64_t pad_before_h = 0, pad_before_w = 0;      // rows and columns of `padding` before x; the geometry then has none
  int64_t x_image_stride = 0, y_image_stride = 0;  // elements; 0: the images follow each other without a gap
  // For sparse_conv only:
  InputTransform input_transform = {};    // of x
  OutputTransform output_transform = {};  // of y
  InstanceNorm norm = {};                 // of y, after output_transform
  const float* sum_scale = nullptr;       // [target channels], where the dtype has integer sums; see SumScale
  SharedPanel shared = {};
  int64_t shuffle = 1;  // PixelShuffle's factor: y has channels / shuffle^2 channels, `shuffle` times as high and wide
};

// Returns the bytes of the call's SharedPanel, and sets its tile where that is 0.
int64_t shared_panel_bytes(ConvCall& call);

// y = bias + sparse_conv(x, values), with the transforms and the shuffle of the call. Every element of y is written.
// bias [target channels] may be null.
void sparse_conv(const ConvCall& call, const void* x, const void* values, const void* bias, void* y,
                 const ThreadPool& pool);

// dv[v] = sum of gy * x over the positions at which value v joins gy and x. Every element of dv [taps * vector] is
// written.
void wgrad(const ConvCall& call, const void* gy, const void* x, void* dv, const ThreadPool& pool);

}  // namespace sparsegan
