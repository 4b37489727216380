#include "tiling.h"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

namespace sparsegan::cuda {
namespace {

// Shared memory of a block for both stages of slabs. A block stays below the 48 KiB that a launch gets by default.
constexpr int64_t kSparseConvStageBytes = 44 * 1024;
constexpr int64_t kWgradStageBytes =
    28 * 1024;  // less, because the lanes' dot products of 32 taps per warp are there too
constexpr int64_t kMaxStageSlabs = 16;
constexpr int64_t kMaxParts = 8;
constexpr int64_t kMaxWgradParts = 64;

int64_t up(int64_t n, int64_t d) { return (n + d - 1) / d; }

int log_up(int64_t n) {
  int log = 0;
  while ((int64_t{1} << log) < n) ++log;
  return log;
}

int narrow(const char* name, int64_t value) {
  if (value < 0 || value >= (int64_t{1} << 31)) {
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                                "; the CUDA kernels take at most 2147483647");
  }
  return static_cast<int>(value);
}

// The part of a tiling that does not depend on the layout of lanes.
Tiling start(const ConvCall& c, const DevicePlanShape& shape) {
  const Geometry& g = *c.geometry;
  Tiling t;
  t.images = narrow("the number of images", c.images);
  t.groups = static_cast<int>(shape.groups);
  t.group_sources = static_cast<int>(shape.group_sources);
  t.group_targets = narrow("target channels x phases", shape.group_targets);
  narrow("the number of targets", shape.targets());
  t.group_bundles = static_cast<int>(shape.group_bundles());
  t.slabs = static_cast<int>(shape.slabs());
  t.phases_h = c.adjoint ? static_cast<int>(g.h.stride) : 1;
  t.phases_w = c.adjoint ? static_cast<int>(g.w.stride) : 1;
  t.rows = static_cast<int>(up(c.y_height, t.phases_h));
  t.columns = static_cast<int>(up(c.y_width, t.phases_w));
  narrow("the number of input rows that the output reaches", (t.rows + 32) * g.h.stride);
  narrow("the number of input columns that the output reaches", (t.columns + 64) * g.w.stride);

  const auto planes = [](const char* image, int64_t channels, int64_t height, int64_t width) {
    narrow("the height of an image", height);
    narrow("the width of an image", width);
    narrow(image, channels * height * width);
    return Planes{static_cast<int>(channels), static_cast<int>(height), static_cast<int>(width), width % 4 == 0};
  };
  const int64_t coarse = g.coarse_channels, fine = g.fine_channels;
  t.x = planes("the number of elements of an input image", c.adjoint ? coarse : fine, c.x_height, c.x_width);
  t.y = planes("the number of elements of an output image", c.adjoint ? fine : coarse, c.y_height, c.y_width);

  const int32_t* const plan = c.plan;
  t.plan.bands = plan;
  t.plan.first = plan + shape.first_at();
  t.plan.codes = reinterpret_cast<const unsigned*>(plan + shape.codes_at());
  t.plan.value_index = plan + shape.value_index_at();
  t.plan.starts = plan + shape.starts_at();
  t.plan.units = c.adjoint ? plan + shape.units_at() : c.support;
  t.plan.places = c.adjoint ? plan + shape.places_at() : nullptr;
  t.plan.taps = narrow("the number of taps", c.taps);

  t.bands = static_cast<int>(shape.bands());
  t.row_step = static_cast<int>(shape.rows.step);
  t.row_spread = static_cast<int>(shape.rows.spread);
  t.column_step = static_cast<int>(shape.columns.step);
  t.column_spread = static_cast<int>(shape.columns.spread);
  t.x.fours &= t.column_spread == 1;

  t.units = UnitDecoder<unsigned>(g);
  t.stride_h = static_cast<int>(g.h.stride), t.stride_w = static_cast<int>(g.w.stride);
  t.padding_h = static_cast<int>(g.h.padding), t.padding_w = static_cast<int>(g.w.padding);
  t.dilation_h = static_cast<int>(g.h.dilation), t.dilation_w = static_cast<int>(g.w.dilation);
  return t;
}

// Writes a layout of lanes into `t`. Returns false if a slab does not fit into `stage_bytes` / 2, or if there would be
// 2^31 tiles or more.
bool lay_out(Tiling& t, const DevicePlanShape& shape, int64_t element, int64_t stage_bytes, int strip, int log_w,
             int log_h) {
  const int64_t lanes_w = 1 << log_w, lanes_h = 1 << log_h, lanes_n = 32 >> (log_w + log_h);
  t.strip = strip, t.log_w = log_w, t.log_h = log_h;
  t.target_blocks = static_cast<int>(up(up(t.group_targets, slots_of(strip)), kWarps));
  t.tiles_w = static_cast<int>(up(t.columns, lanes_w * strip));
  t.tiles_h = static_cast<int>(up(t.rows, lanes_h));
  const int64_t tiles = t.tiles_w * up(t.images, lanes_n) * t.tiles_h;

  const int64_t stride = strip * shape.columns.step / kFour;  // fours from one strip to the next
  const int64_t segment = up((strip - 1) * shape.columns.step + shape.columns.reach, kFour);
  t.segment_fours = static_cast<int>(segment);
  t.stride_fours = static_cast<int>(lanes_w + (segment - 1) / stride);
  t.row_fours = static_cast<int>(stride * (lanes_w - 1) + segment);
  t.slab_rows = static_cast<int>((lanes_h - 1) * shape.rows.step + shape.rows.reach);

  // Shared memory serves 128 bytes at a time. The lanes that it serves together must read fours in different banks.
  // Neighbouring lanes in a row do. Lanes in the next row or image continue after them if the distance to their fours,
  // modulo 128 bytes, is as many fours as there are lanes before.
  const int64_t fours = 128 / (kFour * element);
  const auto pitch = [&](int64_t least, int64_t step, int64_t lanes) {
    for (int64_t p = least; lanes < fours && p < least + fours; ++p) {
      if (p * step % fours == lanes) return p;
    }
    return least;
  };
  const int64_t row_pitch = pitch(stride * t.stride_fours, shape.rows.step, lanes_w);
  const int64_t image_pitch = pitch(row_pitch * t.slab_rows, 1, lanes_w * lanes_h);
  const int64_t slab = image_pitch * lanes_n * kFour;
  if (tiles >= (int64_t{1} << 31) || 2 * slab * element > stage_bytes) return false;
  t.tiles = static_cast<int>(tiles);
  t.row_pitch = static_cast<int>(row_pitch * kFour);
  t.image_pitch = static_cast<int>(image_pitch * kFour);
  t.slab_size = static_cast<int>(slab);
  t.stage_slabs = static_cast<int>(
      std::clamp<int64_t>(stage_bytes / (2 * slab * element), 1, std::min<int64_t>(kMaxStageSlabs, t.slabs)));
  t.row_limit = (t.stage_slabs - 1) * t.slab_size + (static_cast<int>(shape.rows.reach) - 1) * t.row_pitch;
  t.by_fours = Divider(t.row_fours);
  t.by_rows = Divider(t.slab_rows);
  return true;
}

// The clocks of a multiprocessor for one slab, one tile and the targets of one block, by the counts in NOTES.md. Four
// instructions are issued per clock, and shared memory delivers 128 bytes per clock. A tap takes `strip` FMAs and
// `around` other instructions. A row of the slab is loaded once if it has a tap. A round of 32 taps of the bundle is
// prepared by each of its warps. The warps of a block stage the slab together.
double slab_cost(const Tiling& t, const DevicePlanShape& shape, int64_t element, int64_t around) {
  const int64_t slots = slots_of(t.strip), warps = shape.groups * up(shape.group_targets, slots);
  const double taps = static_cast<double>(shape.taps) / (static_cast<double>(warps) * shape.slabs());
  const double rows = std::min<double>(taps, shape.rows.reach);
  const double conversions = element == 4 ? 0 : 1.5 * kFour * t.segment_fours;
  const double round = 120.0 / 32 * static_cast<double>(kBundle / slots);
  const int items = t.slab_rows * t.row_fours * (32 >> (t.log_w + t.log_h));
  const double issued = taps * (t.strip + around + round) + rows * (22 + t.segment_fours + conversions);
  const double words = taps + rows * t.segment_fours * static_cast<double>(element);
  // The last block of a group may have warps without targets. They only stage.
  const double busy = static_cast<double>(warps) / (static_cast<double>(t.groups) * t.target_blocks);
  return std::max((issued * busy + up(items, kThreads) * 10.0 * kWarps) / 4,
                  words * busy + items * static_cast<double>(element) / 32);
}

// Writes the layout of lanes with the lowest cost into `t` and returns the clocks of a multiprocessor for the call.
double choose_lanes(Tiling& t, const DevicePlanShape& shape, int64_t element, int64_t stage_bytes, int64_t around) {
  std::optional<Tiling> best;
  double least = 0;
  for (const int strip : {16, 8, 4}) {
    if (strip == 16 && shape.columns.step == 2) continue;  // its segment would not fit into the registers
    for (int log_w = 3; log_w >= 0; --log_w) {
      for (int log_h = 5 - log_w; log_h >= 0; --log_h) {
        if (!lay_out(t, shape, element, stage_bytes, strip, log_w, log_h)) continue;
        const double block = t.slabs * slab_cost(t, shape, element, around) + 4.0 * slots_of(strip) * strip;
        const double cost = static_cast<double>(t.tiles) * t.groups * t.target_blocks * block;
        if (!best || cost < least) best = t, least = cost;
      }
    }
  }
  if (!best) throw std::invalid_argument("the output has more tiles than the 2147483647 that the CUDA kernels take");
  t = *best;
  return least;
}

int64_t blocks(const Tiling& t) {
  const int64_t blocks = int64_t{t.tiles} * t.groups * t.target_blocks;
  narrow("the number of blocks", blocks);
  return blocks;
}

}  // namespace

Tiling sparse_conv_tiling(const ConvCall& c) {
  const DevicePlanShape shape = device_plan_shape(*c.geometry, c.adjoint, c.taps);
  Tiling t = start(c, shape);
  const double tiled = choose_lanes(t, shape, element_bytes(c.dtype), kSparseConvStageBytes, 8);
  const int64_t stages = up(t.slabs, t.stage_slabs);
  t.parts = static_cast<int>(std::clamp<int64_t>(
      blocks_of(t.strip) * c.multiprocessors / std::max<int64_t>(1, blocks(t)), 1, std::min(stages, kMaxParts)));

  // The kernel for small maps: a warp works on one target, and its lanes hold pixels and taps. No lane idles, and each
  // weight is read once.
  const int64_t pixels = int64_t{t.images} * t.rows * t.columns;
  if (pixels == 0 || pixels > 4096) return t;
  const int log_pixels = std::min(5, log_up(pixels));
  const int lane_pixels = static_cast<int>(std::min<int64_t>(4, int64_t{1} << log_up(up(pixels, 32))));
  const int64_t chunks = up(pixels, int64_t{lane_pixels} << log_pixels);
  const double tap =
      3 + (2 + 8.0 * lane_pixels) / (32 >> log_pixels);  // instructions, of which four are issued per clock
  const double one_by_one =
      static_cast<double>(chunks) / 4 * (static_cast<double>(c.taps) * tap + 60.0 * shape.targets());
  if (one_by_one >= tiled) return t;
  t.small = true;
  t.parts = 1;
  t.log_pixels = log_pixels;
  t.lane_pixels = lane_pixels;
  // Several warps work on one target if each still has a few rounds of 32 taps.
  while (t.ways < kWarps && c.taps >= 128 * t.ways * shape.targets()) t.ways *= 2;
  return t;
}

Tiling wgrad_tiling(const ConvCall& c) {
  const DevicePlanShape shape = device_plan_shape(*c.geometry, c.adjoint, c.taps);
  Tiling t = start(c, shape);
  choose_lanes(t, shape, element_bytes(c.dtype), kWgradStageBytes, 13);
  const int64_t wanted = 2 * blocks_of(t.strip) * c.multiprocessors,
                each = std::max<int64_t>(1, blocks(t) / std::max(1, t.tiles));
  t.parts = static_cast<int>(std::clamp<int64_t>(up(wanted, each), 1, std::clamp<int64_t>(t.tiles, 1, kMaxWgradParts)));
  t.slices = static_cast<int>(std::clamp<int64_t>(wanted / (each * t.parts), 1, up(t.slabs, t.stage_slabs)));

  // The kernel for small maps has one tap per thread: each element read serves one FMA, but no lane idles and no sum
  // crosses lanes. The comparison is in instructions per tap.
  const double pixels = static_cast<double>(c.images) * (c.adjoint ? c.x_height * c.x_width : c.y_height * c.y_width);
  t.small = pixels <= t.tiles * (t.strip + 28.0) / 2;
  return t;
}

int64_t sparse_conv_workspace(const ConvCall& c) {
  const Tiling t = sparse_conv_tiling(c);
  return t.parts == 1 ? 0 : t.parts * int64_t{t.images} * t.y.channels * t.y.plane();
}

int64_t wgrad_workspace(const ConvCall& c) {
  const Tiling t = wgrad_tiling(c);
  return t.small ? 0 : t.parts * int64_t{t.plan.taps};
}

}  // namespace sparsegan::cuda
