#include "tiling.h"

#include <algorithm>
#include <limits>
#include <map>
#include <vector>

#include "cost_model.h"

namespace sparsegan {
namespace {

// Returns the index of the largest of kWidths that the ISA has and that divides units of `width` target channels.
int width_index(const Kernels& k, int panel_type, int64_t width) {
  int index = kWidthCount - 1;
  while (k.max_tile[panel_type][index] == 0 || width % kWidths[index] != 0) --index;
  return index;
}

// Returns whether images take the place of rows. Outputs must be one row high and every tap must read row 0, as in the
// first layer of a generator (1x1 inputs, one phase per kernel position). A lane then holds several images, and a tap
// still serves a whole register tile.
bool fold_images(int64_t height, const Axis& h, int64_t images) {
  return height == 1 && h.shift(0) == 0 && h.shift(h.kernel - 1) == 0 && images > 1;
}

// Returns the tile sizes of all ways to cut n outputs into equal tiles of at most `most` outputs.
std::vector<int64_t> tile_sizes(int64_t n, int64_t most) {
  std::vector<int64_t> sizes;
  for (int64_t cuts = ceil_div(n, most); cuts <= n; ++cuts) {
    const int64_t size = ceil_div(n, cuts);
    if (sizes.empty() || sizes.back() != size) sizes.push_back(size);
    if (size == 1) break;
  }
  return sizes;
}

}  // namespace

TilingProblem::Key TilingProblem::key() const {
  const Geometry& g = *geometry;
  return {images,
          height,
          width,
          reach_h,
          reach_w,
          lanes,
          max_tile,
          max_rows,
          element,
          fold,
          register_tiles,
          shape.adjoint,
          shape.direct,
          shape.taps,
          shape.sources,
          shape.targets,
          g.h.kernel,
          g.h.stride,
          g.h.padding,
          g.h.dilation * (int64_t{1} << 21) + g.w.dilation,
          g.w.kernel,
          g.w.stride,
          g.w.padding,
          (g.coarse_vector * 64 + g.fine_vector - 1) * 8 + lane_channels,
          tile_h * (int64_t{1} << 31) + tile_w};
}

TilingProblem tiling_problem(const ConvCall& c, const Kernels& k, bool register_tiles) {
  const Geometry& g = *c.geometry;
  const int64_t phases_h = c.adjoint ? g.h.stride : 1, phases_w = c.adjoint ? g.w.stride : 1;
  const DTypeRow& type = kDTypes[static_cast<int>(c.dtype)];
  const int64_t height = ceil_div(c.y_height, phases_h), width = ceil_div(c.y_width, phases_w);
  const bool whole_images = c.x_image_stride || c.y_image_stride || c.norm.scale || c.input_transform.scale ||
                            c.shuffle > 1 || c.shared.used();
  const bool fold = c.padding == Padding::zeros && !whole_images && fold_images(height, g.h, c.images);
  TilingProblem p;
  p.geometry = &g;
  p.shape = c.plan->shape;
  p.images = fold ? 1 : c.images;
  p.height = fold ? c.images : height;
  p.width = width;
  p.reach_h = g.h.shift(g.h.kernel - 1) - g.h.shift(0);
  p.reach_w = g.w.shift(g.w.kernel - 1) - g.w.shift(0);
  p.lanes = k.lanes[type.panel_type];
  p.width_index = width_index(k, type.panel_type, p.shape.width);
  p.max_tile = k.max_tile[type.panel_type][p.width_index];
  p.max_rows = k.max_rows;
  p.element = type.panel_bytes;
  p.lane_channels = type.lane_channels;
  p.register_tiles = register_tiles;
  p.fold = fold;
  p.tile_h = c.shared.tile_h;
  p.tile_w = c.shared.tile_w;
  return p;
}

Tiling choose_tiling(const TilingProblem& p) {
  thread_local std::map<TilingProblem::Key, Tiling> seen;
  const auto key = p.key();
  if (const auto it = seen.find(key); it != seen.end()) return it->second;

  // Most outputs of a tile in one direction, before twice the halo is added. Larger tiles have less halo per output,
  // smaller tiles stay in the cache.
  constexpr int64_t kMostTile = 16, kStripVectors = 64;
  Tiling best;
  double best_cycles = std::numeric_limits<double>::infinity();
  const std::vector<int64_t> heights =
      p.tile_h ? std::vector{p.tile_h} : tile_sizes(p.height, kMostTile + 2 * p.reach_h);
  const std::vector<int64_t> widths = p.tile_w ? std::vector{p.tile_w} : tile_sizes(p.width, kMostTile + 2 * p.reach_w);
  for (const int64_t tile_h : heights) {
    for (const int64_t width : widths) {
      for (int64_t cols = 1; cols <= (p.register_tiles ? std::min(kMaxCols, p.max_tile) : 1); ++cols) {
        Tiling t;
        t.images = p.images;
        t.cols = cols;
        t.tile_h = tile_h;
        t.tile_w = ceil_div(width, cols) * cols;
        if (p.tile_w && t.tile_w != p.tile_w) continue;
        const int64_t most_rows = p.register_tiles ? std::min({p.max_rows, p.max_tile / cols, tile_h})
                                                   : std::clamp<int64_t>(kStripVectors / t.tile_w, 1, tile_h);
        t.rows = ceil_div(tile_h, ceil_div(tile_h, most_rows));  // equal strips, not a thin last strip
        t.tiles_h = ceil_div(p.height, t.tile_h);
        t.tiles_w = ceil_div(p.width, t.tile_w);
        t.lanes = p.lanes;
        t.groups = ceil_div(t.tiles(), p.lanes);
        const double cycles = tiling_cycles(p, t).total();
        if (cycles < best_cycles) {
          best_cycles = cycles;
          best = t;
        }
      }
    }
  }
  if (seen.size() >= 256) seen.clear();
  seen.emplace(key, best);
  return best;
}

}  // namespace sparsegan
