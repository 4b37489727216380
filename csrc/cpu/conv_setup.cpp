#include "conv_setup.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "cost_model.h"
#include "isa.h"
#include "tiling.h"

namespace sparsegan {
namespace {

Frame frame_of(int64_t images, int64_t channels, int64_t height, int64_t width, int64_t phases_h, int64_t phases_w,
               int64_t image_stride, bool fold) {
  Frame f;
  f.channels = channels;
  f.phases_h = phases_h;
  f.phases_w = phases_w;
  f.height = height;
  f.width = width;
  f.channel_stride = height * width;
  f.image_stride = image_stride ? image_stride : channels * f.channel_stride;
  f.images_as_rows = fold ? images : 0;
  f.size = (images - 1) * f.image_stride + channels * f.channel_stride;
  return f;
}

// Returns the number of elements from one plane to the next. Large planes, which the kernels use in parts, lie an odd
// number of cache lines apart. Otherwise the same part of each plane would compete for a few sets of the cache.
int64_t plane_stride(int64_t elements, int64_t bytes) {
  constexpr int64_t kLine = 64, kSmall = 16;
  const int64_t lines = ceil_div(elements * bytes, kLine);
  return lines <= kSmall ? elements : (lines | 1) * kLine / bytes;
}

}  // namespace

ConvSetup conv_setup(const ConvCall& c, bool register_tiles) {
  const Geometry& g = *c.geometry;
  const PlanShape& shape = c.plan->shape;
  const Kernels& k = kernels();
  const int dtype = static_cast<int>(c.dtype);
  const TilingProblem problem = tiling_problem(c, k, register_tiles);
  const Tiling t = choose_tiling(problem);

  ConvSetup s{k,  dtype, kDTypes[dtype].panel_type, problem.width_index, problem.element, t, joined_blocks(problem, t),
              {}, {}};
  const int64_t x_h = c.adjoint ? 1 : g.h.stride, x_w = c.adjoint ? 1 : g.w.stride;
  // With PixelShuffle, the target channels are the phases of fewer and larger channels.
  const int64_t y_h = c.adjoint ? g.h.stride : c.shuffle, y_w = c.adjoint ? g.w.stride : c.shuffle;
  s.x = frame_of(c.images, shape.sources, c.x_height, c.x_width, x_h, x_w, c.x_image_stride, problem.fold);
  s.y = frame_of(c.images, shape.target_channels() / (c.shuffle * c.shuffle), c.y_height * c.shuffle,
                 c.y_width * c.shuffle, y_h, y_w, c.y_image_stride, problem.fold);
  s.x.lane_channels = problem.lane_channels;
  s.x.channels /= problem.lane_channels;
  s.x.padding = c.padding;
  s.x.before_h = c.pad_before_h;
  s.x.before_w = c.pad_before_w;
  s.x.first_h = c.adjoint ? -g.h.shift(g.h.kernel - 1) : g.h.shift(0);
  s.x.first_w = c.adjoint ? -g.w.shift(g.w.kernel - 1) : g.w.shift(0);
  s.x.rows = t.tile_h + problem.reach_h;
  s.x.cols = t.tile_w + problem.reach_w;
  s.y.rows = t.tile_h;
  s.y.cols = t.tile_w;
  s.x.plane = plane_stride(s.x.rows * s.x.cols * t.lanes, s.element);
  s.y.plane = plane_stride(s.y.rows * s.y.cols * t.lanes, s.element);

  const int64_t channels = std::min(shape.span_channels(), shape.sources);
  const double span = double(s.x.plane) * double(channels / s.x.lane_channels * shape.source_phases);
  if (span > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("geometry: the kernel spreads over " + std::to_string(problem.reach_h) + " x " +
                                std::to_string(problem.reach_w) +
                                " elements, more than the kernels' 2147483647 panel elements can hold");
  }
  return s;
}

}  // namespace sparsegan
