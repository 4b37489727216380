// InstanceNorm of the output of a sparse_conv.
#pragma once

#include "kernels/kernels.h"

namespace sparsegan {

// The norm as an affine map y * scale + shift, which a later pack applies. The mapped y has mean `bias` and standard
// deviation `weight` in every image and channel.
struct InstanceNorm {
  const void* weight = nullptr;  // [channels] of the panel's type; null: 1
  const void* bias = nullptr;    // null: 0
  double eps = 0;
  void* scale = nullptr;  // [images][channels] of the panel's type, images image_stride apart; null: no norm
  void* shift = nullptr;
  int64_t image_stride = 0;
};

// Writes scale and shift of channels [first, last) from the moments of the tiles, [group][channel][kMoments][lane]. The
// moments of an image's tiles are joined in double precision.
void write_instance_norm(const InstanceNorm& norm, int panel_type, const Tiling& tiling, int64_t channels,
                         int64_t first, int64_t last, const void* moments);

}  // namespace sparsegan
