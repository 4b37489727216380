#include "conv.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "registry.h"

namespace sparsegan {

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  const auto first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

namespace {

// ---------------------------------------------------------------- workspace

std::atomic<int64_t> workspace_total{0};

// Scratch memory of one calling thread: grows, is reused by every later call, and is freed with the thread.
class Workspace {
 public:
  ~Workspace() { release(); }

  // At least `bytes`, aligned to a cache line; contents undefined.
  char* reserve(int64_t bytes) {
    if (bytes > capacity_) {
      release();
      constexpr int64_t kPage = 4096;
      const int64_t page = bytes >= kHugePage ? kHugePage : kPage, rounded = (bytes + page - 1) / page * page;
      data_ = static_cast<char*>(std::aligned_alloc(static_cast<size_t>(page), static_cast<size_t>(rounded)));
      if (!data_) throw std::bad_alloc();
      prefer_huge_pages(data_, rounded);  // planes lie far apart
      capacity_ = rounded;
      workspace_total += capacity_;
    }
    return data_;
  }

 private:
  void release() {
    std::free(data_);
    workspace_total -= capacity_;
    data_ = nullptr;
    capacity_ = 0;
  }

  char* data_ = nullptr;
  int64_t capacity_ = 0;
};

thread_local Workspace workspace;

// Lays pieces out one after the other, each on its own cache line; then hands out their addresses.
class Layout {
 public:
  int64_t add(int64_t bytes) {
    const int64_t at = size_;
    size_ += (bytes + 63) / 64 * 64;
    return at;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

// ---------------------------------------------------------------- where the time goes

struct {
  std::atomic<int64_t> pack{0}, multiply{0}, unpack{0}, order{0};
} part_nanoseconds;

// Adds what passes in its life, or until it is stopped.
class Clock {
 public:
  explicit Clock(std::atomic<int64_t>& total) : total_(&total), start_(std::chrono::steady_clock::now()) {}
  ~Clock() { stop(); }
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

  void stop() {
    const auto passed = std::chrono::steady_clock::now() - start_;
    if (total_) *total_ += std::chrono::duration_cast<std::chrono::nanoseconds>(passed).count();
    total_ = nullptr;
  }

 private:
  std::atomic<int64_t>* total_;
  std::chrono::steady_clock::time_point start_;
};

// ---------------------------------------------------------------- tiling

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Which of kWidths serves units of `width` target channels.
int width_index(const Kernels& k, int64_t width) {
  int index = kWidthCount - 1;
  while (k.max_tile[index] == 0 || width % kWidths[index] != 0) --index;
  return index;
}

// What the choice of a tiling depends on.
struct Problem {
  const Geometry* geometry;
  PlanShape shape;
  int64_t images, height, width;  // outputs of one target plane
  int64_t reach_h, reach_w;       // halo: how far the taps' shifts spread
  int64_t lanes, max_tile, max_rows, element;
  int width_index;      // of kWidths
  bool register_tiles;  // sparse_conv keeps outputs in registers, wgrad does not
  bool fold;            // images are rows

  using Key = std::array<int64_t, 24>;
  Key key() const {
    const Geometry& g = *geometry;
    return {images,       height,     width,          reach_h,
            reach_w,      lanes,      max_tile,       max_rows,
            element,      fold,       register_tiles, shape.adjoint,
            shape.direct, shape.taps, shape.sources,  shape.targets,
            g.h.kernel,   g.h.stride, g.h.padding,    g.h.dilation * (int64_t{1} << 21) + g.w.dilation,
            g.w.kernel,   g.w.stride, g.w.padding,    g.coarse_vector * 64 + g.fine_vector - 1};
  }
};

// A small map: each tap serves one register tile, small enough to read values through the taps' order (sparse_conv.h),
// and is not worth a copy.
bool reads_taps_once(const Tiling& t, const PlanShape& shape) {
  constexpr int64_t kMostIndirect = 6;
  return t.groups == 1 && t.tile_h == t.rows && t.tile_w == t.cols && t.rows * t.cols <= kMostIndirect &&
         shape.depth == 1 && shape.width == 1;
}

// Outputs of a register tile that are summed to together: a part of the second-level cache.
constexpr int64_t kOutputBytes = 160 * 1024;

// Blocks of the plan that a call runs as one: as many as keep the window of a register tile (or strip) of rows x cols
// outputs near the core, within a span.
int64_t joined_blocks(const Problem& p, int64_t rows, int64_t cols) {
  constexpr int64_t kWindowBytes = 48 * 1024;
  const Geometry& g = *p.geometry;
  const int64_t window = p.fold ? rows * g.w.window(p.shape.adjoint, cols)
                                : g.h.window(p.shape.adjoint, rows) * g.w.window(p.shape.adjoint, cols);
  const int64_t bytes = window * p.lanes * p.element * p.shape.block_channels;
  return std::clamp<int64_t>(kWindowBytes / bytes, 1, p.shape.span_blocks);
}

int64_t joined_blocks(const Problem& p, const Tiling& t) {
  return joined_blocks(p, t.rows, p.register_tiles ? t.cols : t.tile_w);
}

// Cycles of a sparse_conv's parts on one core: a least-squares fit (no part below zero) to 1,174 timings on AVX2,
// random tilings of 13 layers at 60 and 90 % sparsity: half of them are predicted within 10 %, 79 % within 20 %, 95 %
// within 35 %. A vector FMA's share of cache misses is in kFma, a mispredicted loop exit in kSegment.
constexpr double kFma = 0.72, kTap = 1.9, kTapRow = 0.48;  // a vector FMA; a tap and a row of a register tile
constexpr double kSegment = 49, kSegmentOutput = 0.43;     // a target and joined blocks, and each vector of outputs
constexpr double kPack = 11.7, kUnpack = 12.3;             // a vector
constexpr double kCode = 1.7, kOrder = 7.1;                // a tap, fine -> coarse and coarse -> fine, once a call
// wgrad: two taps' FMAs share a load less well, and each tap's lanes are summed once a strip.
constexpr double kWgradFma = 0.62, kWgradTap = 8;

// Vectors that pack or unpack handle for a plane row of `cols` columns, phases together.
double row_vectors(const Problem& p, int64_t cols, int64_t phases) {
  const int64_t rest = cols * phases % p.lanes;
  const int64_t last = rest == 0 ? 0 : rest <= few_elements(p.lanes) ? 4 * rest : p.lanes;
  return double(cols * phases - rest + last) / double(phases);
}

Cycles tiling_cycles(const Problem& p, const Tiling& t) {
  const PlanShape& shape = p.shape;
  const Geometry& g = *p.geometry;
  const double outputs = double(t.tile_h) * double(t.tile_w);
  const double pack = double(shape.sources * shape.source_phases) * double(t.tile_h + p.reach_h) *
                      row_vectors(p, t.tile_w + p.reach_w, shape.adjoint ? 1 : g.w.stride);
  const double unpack =
      double(shape.targets * shape.width) * double(t.tile_h) * row_vectors(p, t.tile_w, shape.adjoint ? g.w.stride : 1);
  const double taps = double(shape.taps * shape.depth), groups = double(t.groups);
  Cycles cycles;
  cycles.pack = groups * kPack * pack;
  if (!p.register_tiles) {
    const double strips = double(ceil_div(t.tile_h, t.rows)), sums = taps * double(shape.width);
    cycles.multiply = groups * sums * kWgradFma * outputs;
    cycles.taps = groups * sums * kWgradTap * strips;
    cycles.pack += groups * kPack * unpack;  // of gy
    return cycles;
  }
  const double register_tiles = double(ceil_div(t.tile_h, t.rows)) * double(t.tile_w / t.cols);
  const double parts = double(shape.width / kWidths[p.width_index]), width = double(kWidths[p.width_index]);
  const double blocks = double(ceil_div(shape.blocks, joined_blocks(p, t)));
  const double segments = std::min(blocks * double(shape.targets), double(shape.taps + shape.targets)) * parts;
  cycles.multiply = groups * taps * parts * kFma * outputs * width;
  cycles.taps = groups * taps * parts * (kTap + kTapRow * double(t.rows)) * register_tiles;
  cycles.targets = groups * segments * (kSegment * register_tiles + kSegmentOutput * outputs * width);
  cycles.unpack = groups * kUnpack * unpack;
  if (!shape.direct) cycles.order = (shape.adjoint && !reads_taps_once(t, shape) ? kOrder : kCode) * taps;
  return cycles;
}

// Every way to cut n outputs into equal tiles of at most `most`.
std::vector<int64_t> tile_sizes(int64_t n, int64_t most) {
  std::vector<int64_t> sizes;
  for (int64_t cuts = ceil_div(n, most); cuts <= n; ++cuts) {
    const int64_t size = ceil_div(n, cuts);
    if (sizes.empty() || sizes.back() != size) sizes.push_back(size);
    if (size == 1) break;
  }
  return sizes;
}

Tiling choose_tiling(const Problem& p) {
  thread_local std::map<Problem::Key, Tiling> seen;
  const auto key = p.key();
  if (const auto it = seen.find(key); it != seen.end()) return it->second;

  // And twice the halo: larger tiles share more of it, smaller ones stay in the cache.
  constexpr int64_t kMostTile = 16, kStripVectors = 64;
  Tiling best;
  double best_cycles = std::numeric_limits<double>::infinity();
  for (const int64_t tile_h : tile_sizes(p.height, kMostTile + 2 * p.reach_h)) {
    for (const int64_t width : tile_sizes(p.width, kMostTile + 2 * p.reach_w)) {
      for (int64_t cols = 1; cols <= (p.register_tiles ? std::min(kMaxCols, p.max_tile) : 1); ++cols) {
        Tiling t;
        t.images = p.images;
        t.cols = cols;
        t.tile_h = tile_h;
        t.tile_w = ceil_div(width, cols) * cols;
        const int64_t most_rows = p.register_tiles ? std::min({p.max_rows, p.max_tile / cols, tile_h})
                                                   : std::clamp<int64_t>(kStripVectors / t.tile_w, 1, tile_h);
        t.rows = ceil_div(tile_h, ceil_div(tile_h, most_rows));  // equal strips rather than a thin last one
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

// ---------------------------------------------------------------- one call's frames, offsets and threads

struct Setup {
  const Kernels& k;
  int dtype, panel_type, width;  // rows of the kernel tables
  int64_t element;               // bytes of a panel element
  Tiling tiling;
  int64_t joined;  // blocks run as one
  Frame x, y;

  int64_t x_plane() const { return x.plane * element; }
  int64_t y_plane() const { return y.plane * element; }
};

// Where outputs are one row high and every tap reads row 0 (a generator's first layer: 1x1 inputs, every kernel
// position its own phase), images take the place of rows: a lane then holds several images and a tap still serves a
// whole register tile.
bool fold_images(int64_t height, const Axis& h, int64_t images) {
  return height == 1 && h.shift(0) == 0 && h.shift(h.kernel - 1) == 0 && images > 1;
}

Problem problem_of(const ConvCall& c, const Kernels& k, bool register_tiles) {
  const Geometry& g = *c.geometry;
  const int64_t phases_h = c.adjoint ? g.h.stride : 1, phases_w = c.adjoint ? g.w.stride : 1;
  const int panel_type = c.dtype == DType::float64 ? 1 : 0;
  const int64_t height = ceil_div(c.y_height, phases_h), width = ceil_div(c.y_width, phases_w);
  const bool whole_images = c.x_image_stride || c.y_image_stride || c.norm.scale || c.prologue.scale || c.shuffle > 1;
  const bool fold = c.padding == Padding::zeros && !whole_images && fold_images(height, g.h, c.images);
  Problem p;
  p.geometry = &g;
  p.shape = c.plan->shape;
  p.images = fold ? 1 : c.images;
  p.height = fold ? c.images : height;
  p.width = width;
  p.reach_h = g.h.shift(g.h.kernel - 1) - g.h.shift(0);
  p.reach_w = g.w.shift(g.w.kernel - 1) - g.w.shift(0);
  p.lanes = k.lanes[panel_type];
  p.width_index = width_index(k, p.shape.width);
  p.max_tile = k.max_tile[p.width_index];
  p.max_rows = k.max_rows;
  p.element = panel_type == 1 ? 8 : 4;
  p.register_tiles = register_tiles;
  p.fold = fold;
  return p;
}

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

// Elements from one plane to the next: planes of which a part is used at a time lie an odd number of cache lines apart,
// or the parts would compete for a few of the cache's sets.
int64_t plane_stride(int64_t elements, int64_t bytes) {
  constexpr int64_t kLine = 64, kSmall = 16;
  const int64_t lines = ceil_div(elements * bytes, kLine);
  return lines <= kSmall ? elements : (lines | 1) * kLine / bytes;
}

Setup prepare(const ConvCall& c, bool register_tiles) {
  const Geometry& g = *c.geometry;
  const PlanShape& shape = c.plan->shape;
  const Kernels& k = kernels();
  const int panel_type = c.dtype == DType::float64 ? 1 : 0;
  const Problem problem = problem_of(c, k, register_tiles);
  const Tiling t = choose_tiling(problem);

  Setup s{
      k, static_cast<int>(c.dtype), panel_type, problem.width_index, problem.element, t, joined_blocks(problem, t), {},
      {}};
  const int64_t x_h = c.adjoint ? 1 : g.h.stride, x_w = c.adjoint ? 1 : g.w.stride;
  // PixelShuffle's channels are phases of fewer, larger ones.
  const int64_t y_h = c.adjoint ? g.h.stride : c.shuffle, y_w = c.adjoint ? g.w.stride : c.shuffle;
  s.x = frame_of(c.images, shape.sources, c.x_height, c.x_width, x_h, x_w, c.x_image_stride, problem.fold);
  s.y = frame_of(c.images, shape.target_channels() / (c.shuffle * c.shuffle), c.y_height * c.shuffle,
                 c.y_width * c.shuffle, y_h, y_w, c.y_image_stride, problem.fold);
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
  const double span = double(s.x.plane) * double(channels * shape.source_phases);
  if (span > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("geometry: the kernel spreads over " + std::to_string(problem.reach_h) + " x " +
                                std::to_string(problem.reach_w) +
                                " elements, more than the kernels' 2147483647 panel elements can hold");
  }
  return s;
}

// The table that turns a code into panel elements from the span's first plane.
void write_offsets(const ConvCall& c, const Setup& s, int32_t* out) {
  const Geometry& g = *c.geometry;
  const PlanShape& shape = c.plan->shape;
  const int64_t channels = std::min(shape.span_channels(), shape.sources);
  const int64_t sign = c.adjoint ? -1 : 1;
  for (int64_t i = 0, position = 0; i < g.h.kernel; ++i) {
    for (int64_t j = 0; j < g.w.kernel; ++j, ++position) {
      const int64_t phase = c.adjoint ? 0 : g.h.phase(i) * g.w.stride + g.w.phase(j);
      const int64_t row = sign * g.h.shift(i) - s.x.first_h, col = sign * g.w.shift(j) - s.x.first_w;
      const int64_t at = phase * s.x.plane + (row * s.x.cols + col) * s.tiling.lanes;
      for (int64_t channel = 0; channel < channels; ++channel) {
        out[channel * g.positions() + position] = static_cast<int32_t>(channel * shape.source_phases * s.x.plane + at);
      }
    }
  }
}

// Cuts the targets into `parts` ranges of about equal work; `together` of them are never parted.
std::vector<int64_t> balance(const PlanView& plan, int64_t parts, int64_t together) {
  const PlanShape& shape = plan.shape;
  std::vector<int64_t> cuts{0};
  const int64_t total = shape.taps + 2 * shape.targets;
  for (int64_t target = 0; target < shape.targets; target += together) {
    const int64_t before = plan.rows[target * shape.blocks] + 2 * target;
    if (before >= total * static_cast<int64_t>(cuts.size()) / parts) cuts.push_back(target);
  }
  cuts.resize(static_cast<size_t>(parts) + 1, shape.targets);
  cuts.back() = shape.targets;
  return cuts;
}

// body(first, last) over `parts` near-equal ranges of [0, count).
void split(const Team& team, int64_t parts, int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  if (parts == 1) return body(0, count);
  team.run(parts, [&](int64_t i) { body(count * i / parts, count * (i + 1) / parts); });
}

// Pieces of work that a thread takes at a time: another process on a core then delays one piece, not all of its share.
constexpr int64_t kPieces = 4;

// body(i, worker) for every i of [0, count), each taken by the first of `workers` threads that is free.
template <class Body>
void share(const Team& team, int64_t workers, int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t worker) {
    for (int64_t i = next++; i < count; i = next++) body(i, worker);
  };
  if (workers == 1) return work(0);
  team.run(workers, work);
}

// ---------------------------------------------------------------- taps

// A call's taps in the order in which the kernels read them.
struct Taps {
  const uint16_t* codes = nullptr;
  const char* values = nullptr;  // sparse_conv only
  const int32_t* offsets = nullptr;
  const int32_t* order = nullptr;  // of the values; null where they are in the taps' order
};

// What of them is not there already lies in the workspace.
struct TapLayout {
  bool codes, values;
  int64_t codes_at, values_at, offsets_at;

  TapLayout(const Setup& s, const PlanView& plan, bool with_values, Layout& layout)
      : codes(!plan.codes || plan.shape.depth > 1),
        values(with_values && (s.dtype == 2 || (plan.order && !reads_taps_once(s.tiling, plan.shape)))) {
    constexpr int64_t kCodes = int64_t{1} << 16, kReadAhead = 2;
    codes_at = layout.add(codes ? (plan.shape.taps * plan.shape.depth + kReadAhead) * 2 : 0);
    values_at = layout.add(values ? plan.shape.taps * plan.shape.depth * plan.shape.width * s.element : 0);
    offsets_at = layout.add(kCodes * 4);
  }
};

// The units' codes of targets [first, last), to out[unit]; false where one is none of the span's.
bool write_codes(const Kernels& k, const PlanView& plan, int64_t first, int64_t last, uint16_t* out) {
  const PlanShape& shape = plan.shape;
  const int64_t positions = shape.positions, depth = shape.depth;
  const int64_t group_sources = plan.group_sources, group_targets = plan.group_targets;
  bool good = true;
  for (int64_t target = first; target < last; ++target) {
    const int32_t* const rows = plan.rows + target * shape.blocks;
    for (int64_t b = 0; b < shape.blocks; b += shape.span_blocks) {
      const int64_t end_block = std::min(b + shape.span_blocks, shape.blocks);
      const int64_t begin = rows[b], end = rows[end_block];
      const int64_t limit =
          (std::min(end_block * shape.block_channels, shape.sources) - b * shape.block_channels) / depth * positions;
      // A support's number of unit 0 of the span at position 0, were it in the target's group.
      const int64_t base =
          (target * group_sources - target / group_targets * group_sources + b * shape.block_channels / depth) *
          positions;
      if (begin < end)
        good &= k.codes(plan.support + begin, end - begin, static_cast<int32_t>(base), out + begin) < limit;
    }
  }
  return good;
}

// Each unit's code as those of its `depth` channels; from the back, since they may lie in one array.
void deepen_codes(const PlanShape& shape, bool by_unit, const uint16_t* units, uint16_t* out) {
  for (int64_t t = shape.taps - 1; t >= 0; --t) {
    int64_t code = units[t];
    if (by_unit) code = code / shape.positions * shape.depth * shape.positions + code % shape.positions;
    for (int64_t k = shape.depth - 1; k >= 0; --k) {
      out[t * shape.depth + k] = static_cast<uint16_t>(code + k * shape.positions);
    }
  }
}

// Fine -> coarse the codes come from the support, coarse -> fine the values from their order: both are checked here.
Taps resolve(const ConvCall& c, const Setup& s, const PlanView& plan, const TapLayout& layout, char* base,
             const void* values, const Team& team) {
  const PlanShape& shape = plan.shape;
  const int64_t vector = shape.depth * shape.width;
  const int64_t threads = shape.taps < 1 << 15 ? 1 : std::max<int64_t>(1, team.threads);
  std::atomic<bool> good{true};
  auto* const offsets = reinterpret_cast<int32_t*>(base + layout.offsets_at);
  write_offsets(c, s, offsets);
  Taps taps{plan.codes, static_cast<const char*>(values), offsets};
  auto* const codes = reinterpret_cast<uint16_t*>(base + layout.codes_at);
  if (!plan.codes) {
    split(team, threads, shape.targets, [&](int64_t first, int64_t last) {
      if (!write_codes(s.k, plan, first, last, codes)) good = false;
    });
    taps.codes = codes;
  }
  if (!good) bad_plan("its rows give a kept unit to a target that is not its own");
  if (shape.depth > 1) {
    deepen_codes(shape, !plan.codes, taps.codes, codes);
    taps.codes = codes;
  }
  if (layout.values) {
    char* const out = base + layout.values_at;
    split(team, threads, shape.taps, [&](int64_t first, int64_t last) {
      if (!s.k.order_values[s.dtype](plan.order, first, last, shape.taps, vector, values, out)) good = false;
    });
    taps.values = out;
  }
  if (plan.order && values && !layout.values) {
    uint32_t most = 0;
    for (int64_t t = 0; t < shape.taps; ++t) most = std::max(most, static_cast<uint32_t>(plan.order[t]));
    if (shape.taps > 0 && most >= shape.taps) good = false;
    taps.order = plan.order;
  }
  if (!good) bad_plan("a tap names a value that is not there");
  return taps;
}

// What the tiles' moments of channels [first, last) make of a norm: an image's are joined in double precision.
template <class T>
void write_norm(const Norm& norm, const Tiling& t, int64_t channels, int64_t first, int64_t last, const char* moments) {
  const auto* const found = reinterpret_cast<const T*>(moments);
  const int64_t tiles = t.tiles_h * t.tiles_w;
  for (int64_t image = 0; image < t.images; ++image) {
    for (int64_t c = first; c < last; ++c) {
      double count = 0, mean = 0, far = 0;
      for (int64_t tile = image * tiles; tile < (image + 1) * tiles; ++tile) {
        const T* const at = found + (tile / t.lanes * channels + c) * kMoments * t.lanes + tile % t.lanes;
        const double n = at[0], distance = at[t.lanes] - mean;
        if (n == 0) continue;
        count += n;
        mean += distance * n / count;
        far += at[2 * t.lanes] + distance * distance * n * (count - n) / count;
      }
      const double weight = norm.weight ? static_cast<const T*>(norm.weight)[c] : 1;
      const double bias = norm.bias ? static_cast<const T*>(norm.bias)[c] : 0;
      const double scale = weight / std::sqrt(far / count + norm.eps);
      static_cast<T*>(norm.scale)[image * norm.image_stride + c] = static_cast<T>(scale);
      static_cast<T*>(norm.shift)[image * norm.image_stride + c] = static_cast<T>(bias - mean * scale);
    }
  }
}

// Source blocks of a plan that are run as one: body(range, first plane of its span in an x panel of `planes` bytes).
template <class Body>
void for_each_join(const Setup& s, const PlanView& plan, const Taps& taps, const char* x_panel, int64_t first,
                   int64_t last, const Body& body) {
  const PlanShape& shape = plan.shape;
  TapRange range{nullptr,    shape.blocks, 0,          shape.depth, shape.width, shape.target_phases,
                 taps.codes, taps.offsets, taps.order, first,       last};
  for (int64_t span = 0; span < shape.blocks; span += shape.span_blocks) {
    const int64_t span_end = std::min(span + shape.span_blocks, shape.blocks);
    const char* const x = x_panel + span * shape.block_channels * shape.source_phases * s.x_plane();
    for (int64_t b = span; b < span_end; b += s.joined) {
      range.rows = plan.rows + b;
      range.joined = std::min(s.joined, span_end - b);
      body(range, x, b == 0);
    }
  }
}

}  // namespace

void sparse_conv(const ConvCall& c, const void* x, const void* values, const void* bias, void* y, const Team& team) {
  if (c.images == 0) return;
  const Setup s = prepare(c, true);
  const PlanView& plan = *c.plan;
  const int64_t groups = s.tiling.groups, threads = std::max<int64_t>(1, team.threads);
  // Groups are independent: a thread takes whole ones, with panels of its own. Those that are left are cut by targets,
  // and packed by each of a few threads: sharing a panel would pass it from core to core, which takes longer.
  constexpr int64_t kMany = 4;
  const int64_t left = groups >= kMany * threads ? 0 : groups % threads;
  const bool share_panels = left > 0 && threads >= kMany * left;
  const int64_t panels = share_panels && groups == left ? 1 : left > 0 ? threads : std::min(threads, groups);
  Clock clock(part_nanoseconds.order);

  Layout layout;
  const TapLayout tap_layout(s, plan, true, layout);
  const int64_t channels = plan.shape.target_channels(), init_at = layout.add(channels * s.element);
  const int64_t x_bytes = s.x.planes() * s.x_plane(), y_bytes = s.y.planes() * s.y_plane();
  const int64_t x_at = layout.add(panels * x_bytes), y_at = layout.add(panels * y_bytes);
  const int64_t moments = c.norm.scale ? s.y.channels * kMoments * s.tiling.lanes * s.element : 0;
  const int64_t moments_at = layout.add(groups * moments);
  char* const base = workspace.reserve(layout.size());
  char* const init = base + init_at;
  const Taps taps = resolve(c, s, plan, tap_layout, base, values, team);
  std::memset(init, 0, static_cast<size_t>(channels * s.element));
  if (bias) s.k.order_values[s.dtype](nullptr, 0, channels, channels, 1, bias, init);
  std::memset(base + moments_at, 0, static_cast<size_t>(groups * moments));
  clock.stop();

  const auto pack = [&](int64_t group, int64_t first, int64_t last, char* panel) {
    const Clock timed(part_nanoseconds.pack);
    s.k.pack[s.dtype](s.x, s.tiling, group, first, last, c.prologue, x, panel);
  };
  // Of the channels of targets [first, last).
  const auto unpack = [&](int64_t group, int64_t first, int64_t last, const char* panel) {
    const Clock timed(part_nanoseconds.unpack);
    const auto channel = [&](int64_t target) {
      return target / plan.shape.target_phases * plan.shape.width / (c.shuffle * c.shuffle);
    };
    s.k.unpack[s.dtype](s.y, s.tiling, group, channel(first), channel(last), panel, c.epilogue,
                        moments ? base + moments_at + group * moments : nullptr, y);
  };
  // A register tile's outputs of some targets stay in the second-level cache while the source blocks add to them.
  const int64_t tile_bytes = s.tiling.rows * s.tiling.cols * s.tiling.lanes * s.element * plan.shape.width;
  const int64_t targets = std::max<int64_t>(1, kOutputBytes / tile_bytes);
  const auto compute = [&](const char* x_panel, char* y_panel, int64_t first, int64_t last) {
    const Clock timed(part_nanoseconds.multiply);
    for (int64_t row = 0; row < s.tiling.tile_h; row += s.tiling.rows) {
      for (int64_t col = 0; col < s.tiling.tile_w; col += s.tiling.cols) {  // tile_w is a multiple of cols
        for (int64_t some = first; some < last; some += targets) {
          for_each_join(s, plan, taps, x_panel, some, std::min(some + targets, last),
                        [&](const TapRange& range, const char* span, bool start) {
                          s.k.sparse_conv[s.panel_type][s.width](range, s.tiling, s.x, s.y, row, col, taps.values, span,
                                                                 y_panel, start ? init : nullptr);
                        });
        }
      }
    }
  };
  const int64_t parts = kPieces * threads;
  const std::vector<int64_t> cuts = balance(plan, parts, plan.shape.target_phases * c.shuffle * c.shuffle);
  struct Piece {
    int64_t group, first, last;
  };
  std::vector<Piece> pieces;
  for (int64_t g = 0; g < groups - left; ++g) pieces.push_back({g, 0, plan.shape.targets});
  for (int64_t i = 0; i < left * parts && !share_panels; ++i) {
    pieces.push_back({groups - left + i / parts, cuts[i % parts], cuts[i % parts + 1]});
  }
  std::vector<int64_t> packed(panels, -1);
  share(team, panels, std::ssize(pieces), [&](int64_t i, int64_t worker) {
    char* const x_panel = base + x_at + worker * x_bytes;
    char* const y_panel = base + y_at + worker * y_bytes;
    const auto [group, first, last] = pieces[i];
    if (packed[worker] != group) pack(group, 0, s.x.channels, x_panel);
    packed[worker] = group;
    compute(x_panel, y_panel, first, last);
    unpack(group, first, last, y_panel);
  });
  for (int64_t g = groups - left; g < groups && share_panels; ++g) {
    share(team, threads, parts,
          [&](int64_t i, int64_t) { pack(g, s.x.channels * i / parts, s.x.channels * (i + 1) / parts, base + x_at); });
    share(team, threads, parts, [&](int64_t i, int64_t) {
      compute(base + x_at, base + y_at, cuts[i], cuts[i + 1]);
      unpack(g, cuts[i], cuts[i + 1], base + y_at);
    });
  }
  if (moments) {
    split(team, std::min(threads, s.y.channels), s.y.channels, [&](int64_t first, int64_t last) {
      const auto norm = s.panel_type == 1 ? &write_norm<double> : &write_norm<float>;
      norm(c.norm, s.tiling, s.y.channels, first, last, base + moments_at);
    });
  }
}

void wgrad(const ConvCall& c, const void* gy, const void* x, void* dv, const Team& team) {
  const PlanView& plan = *c.plan;
  const int64_t vector = c.geometry->vector(), nnz = plan.shape.taps * vector;
  const int64_t threads = std::max<int64_t>(1, team.threads);
  const int64_t value_bytes = c.dtype == DType::float64 ? 8 : c.dtype == DType::float32 ? 4 : 2;
  if (nnz == 0) return;
  std::memset(dv, 0, static_cast<size_t>(nnz * value_bytes));
  if (c.images == 0) return;
  const Setup s = prepare(c, false);

  // Several groups are packed between two barriers; each tap belongs to one thread and sums its groups in order, so the
  // result does not depend on the number of threads.
  const int64_t x_bytes = s.x.planes() * s.x_plane(), y_bytes = s.y.planes() * s.y_plane();
  constexpr int64_t kPanelBytes = 4 << 20;
  const int64_t batch = std::clamp<int64_t>(kPanelBytes / (x_bytes + y_bytes), 1, s.tiling.groups);
  const bool in_place = !plan.order && value_bytes == s.element;  // the taps' order and type are the values' own
  Layout layout;
  const TapLayout tap_layout(s, plan, false, layout);
  const int64_t x_at = layout.add(batch * x_bytes), y_at = layout.add(batch * y_bytes),
                sums_at = layout.add(in_place ? 0 : nnz * s.element);
  char* const base = workspace.reserve(layout.size());
  char* const sums = in_place ? static_cast<char*>(dv) : base + sums_at;
  const Taps taps = resolve(c, s, plan, tap_layout, base, nullptr, team);
  if (!in_place) std::memset(sums, 0, static_cast<size_t>(nnz * s.element));

  const int64_t pieces = threads == 1 ? 1 : kPieces * threads;
  const std::vector<int64_t> cuts = balance(plan, pieces, plan.shape.target_phases);
  for (int64_t g0 = 0; g0 < s.tiling.groups; g0 += batch) {
    const int64_t n = std::min(batch, s.tiling.groups - g0);
    const int64_t channels = n * (s.x.channels + s.y.channels);
    share(team, threads, pieces, [&](int64_t piece, int64_t) {
      const int64_t first = channels * piece / pieces, last = channels * (piece + 1) / pieces;
      // Channel numbers run over the x panels of the batch, then over its gy panels.
      const auto pack_range = [&](const Frame& frame, int64_t from, int64_t to, const void* tensor, int64_t at,
                                  int64_t bytes) {
        for (int64_t i = 0; i < n; ++i) {
          const int64_t a = std::clamp<int64_t>(from - i * frame.channels, 0, frame.channels);
          const int64_t z = std::clamp<int64_t>(to - i * frame.channels, 0, frame.channels);
          if (a < z) s.k.pack[s.dtype](frame, s.tiling, g0 + i, a, z, Prologue{}, tensor, base + at + i * bytes);
        }
      };
      const int64_t x_channels = n * s.x.channels;
      pack_range(s.x, first, std::min(last, x_channels), x, x_at, x_bytes);
      pack_range(s.y, first - x_channels, last - x_channels, gy, y_at, y_bytes);
    });
    share(team, threads, pieces, [&](int64_t piece, int64_t) {
      for (int64_t j = 0; j < n; ++j) {
        for_each_join(s, plan, taps, base + x_at + j * x_bytes, cuts[piece], cuts[piece + 1],
                      [&](const TapRange& range, const char* span, bool) {
                        s.k.wgrad[s.panel_type][s.width](range, s.tiling, s.x, s.y, base + y_at + j * y_bytes, span,
                                                         sums);
                      });
      }
    });
  }
  if (!in_place && !s.k.scatter_values[s.dtype](plan.order, 0, plan.shape.taps, plan.shape.taps, vector, sums, dv)) {
    bad_plan("a tap names a value that is not there");
  }
}

Cycles sparse_conv_cycles(const ConvCall& c) {
  const Problem problem = problem_of(c, kernels(), true);
  return tiling_cycles(problem, choose_tiling(problem));
}

void pointwise(DType dtype, const Operand& a, const Operand* b, Curve curve, int64_t images, int64_t channels,
               int64_t height, int64_t width, int64_t repeat, void* y, int64_t y_image_stride, const Team& team) {
  const Kernels& k = kernels();
  const int64_t element = dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
  const int64_t area = height * width;
  const auto plane = [&](const Operand& from, int64_t image, int64_t channel) {
    const Prologue& p = from.prologue;
    const auto number = [&](const void* array, int64_t at) {
      return dtype == DType::float64 ? static_cast<const double*>(array)[at] : static_cast<const float*>(array)[at];
    };
    Plane found;
    found.x = static_cast<const char*>(from.x) + (image * from.image_stride + channel * area) * element;
    if (p.scale) found.scale = number(p.scale, image * p.image_stride + channel);
    if (p.scale) found.shift = number(p.shift, image * p.image_stride + channel);
    if (p.slope) found.slope = number(p.slope, channel);
    return found;
  };
  const int64_t planes = images * channels, threads = std::max<int64_t>(1, std::min(team.threads, planes));
  split(team, threads, planes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / channels, channel = i % channels;
      const Plane own = plane(a, image, channel);
      const Plane other = b ? plane(*b, image, channel) : Plane{};
      char* const out = static_cast<char*>(y) + (image * y_image_stride + channel * area * repeat * repeat) * element;
      k.pointwise[static_cast<int>(dtype)](own, b ? &other : nullptr, curve, height, width, repeat, out);
    }
  });
}

PartTimes part_times() {
  return {part_nanoseconds.pack, part_nanoseconds.multiply, part_nanoseconds.unpack, part_nanoseconds.order};
}

int64_t workspace_bytes() { return workspace_total.load(); }

}  // namespace sparsegan
