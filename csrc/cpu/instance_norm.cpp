#include "instance_norm.h"

#include <cmath>

namespace sparsegan {
namespace {

template <class T>
void write(const InstanceNorm& norm, const Tiling& t, int64_t channels, int64_t first, int64_t last, const T* moments) {
  const int64_t tiles = t.tiles_h * t.tiles_w;
  for (int64_t image = 0; image < t.images; ++image) {
    for (int64_t c = first; c < last; ++c) {
      double count = 0, mean = 0, m2 = 0;  // m2: sum of squared distances from the mean
      for (int64_t tile = image * tiles; tile < (image + 1) * tiles; ++tile) {
        const T* const at = moments + (tile / t.lanes * channels + c) * kMoments * t.lanes + tile % t.lanes;
        const double n = at[0], distance = at[t.lanes] - mean;
        if (n == 0) continue;
        count += n;
        mean += distance * n / count;
        m2 += at[2 * t.lanes] + distance * distance * n * (count - n) / count;
      }
      const double weight = norm.weight ? static_cast<const T*>(norm.weight)[c] : 1;
      const double bias = norm.bias ? static_cast<const T*>(norm.bias)[c] : 0;
      const double scale = weight / std::sqrt(m2 / count + norm.eps);
      static_cast<T*>(norm.scale)[image * norm.image_stride + c] = static_cast<T>(scale);
      static_cast<T*>(norm.shift)[image * norm.image_stride + c] = static_cast<T>(bias - mean * scale);
    }
  }
}

}  // namespace

void write_instance_norm(const InstanceNorm& norm, int panel_type, const Tiling& tiling, int64_t channels,
                         int64_t first, int64_t last, const void* moments) {
  if (panel_type == kDoublePanel) {
    write(norm, tiling, channels, first, last, static_cast<const double*>(moments));
  } else {
    write(norm, tiling, channels, first, last, static_cast<const float*>(moments));
  }
}

}  // namespace sparsegan
