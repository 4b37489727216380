#include "conv.h"

#include <algorithm>
#include <array>
#include <atomic>
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
      const int64_t rounded = (bytes + 4095) / 4096 * 4096;
      data_ = static_cast<char*>(std::aligned_alloc(4096, static_cast<size_t>(rounded)));
      if (!data_) throw std::bad_alloc();
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

// ---------------------------------------------------------------- tiling

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the choice of a tiling depends on.
struct Problem {
  int64_t images, height, width;  // outputs of one target plane
  int64_t reach_h, reach_w;       // halo: how far the taps' shifts spread
  int64_t sources, targets;       // planes
  int64_t taps, segments;
  int64_t lanes, accumulators, max_rows;
  bool register_tiles;  // gather keeps outputs in registers, wgrad does not
  bool fold;            // images are rows

  std::array<int64_t, 14> key() const {
    return {images, height,   width, reach_h,      reach_w,  sources,        targets,
            taps,   segments, lanes, accumulators, max_rows, register_tiles, fold};
  }
};

// Cycles of a gather's parts on one core: a least-squares fit (no part below zero) to 110 timings on AVX2 of 22 layers
// at 30 to 97 % sparsity. 47 % of them are predicted within 10 %, 80 % within 20 %, 91 % within 35 %; the layers with
// 1x1 inputs come out too fast, by up to three times. A vector FMA's share of cache misses is in kFma, a mispredicted
// loop exit in kSegment, reading a value and checking its code in kValue.
constexpr double kFma = 0.93, kTap = 0.11, kSegment = 56, kPack = 18, kUnpack = 25, kValue = 7.6;
// wgrad: two taps' FMAs share a load less well, and each tap's lanes are summed once a strip.
constexpr double kWgradFma = 0.62, kWgradTap = 14;

double tiling_cycles(const Problem& p, const Tiling& t) {
  const double outputs = double(t.tile_h) * double(t.tile_w);
  const double pack = double(p.sources) * double(t.tile_h + p.reach_h) * double(t.tile_w + p.reach_w);
  const double taps = double(p.taps), targets = double(p.targets);
  if (!p.register_tiles) {
    const double strips = double(ceil_div(t.tile_h * t.tile_w, 64));
    return double(t.groups) * (taps * (kWgradFma * outputs + kWgradTap * strips) + kPack * (pack + targets * outputs));
  }
  const double register_tiles = double(ceil_div(t.tile_h, t.rows)) * double(t.tile_w / t.cols);
  const double segments = std::min(double(p.segments), taps + targets);
  const double work = taps * (kTap * register_tiles + kFma * outputs) + segments * kSegment * register_tiles;
  return double(t.groups) * (work + kPack * pack + kUnpack * targets * outputs) + kValue * taps;
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
  thread_local std::map<std::array<int64_t, 14>, Tiling> seen;
  const auto key = p.key();
  if (const auto it = seen.find(key); it != seen.end()) return it->second;

  // And twice the halo: larger tiles share more of it, smaller ones stay in the cache.
  constexpr int64_t kMostTile = 16;
  Tiling best;
  double best_cycles = std::numeric_limits<double>::infinity();
  for (const int64_t tile_h : tile_sizes(p.height, kMostTile + 2 * p.reach_h)) {
    for (const int64_t width : tile_sizes(p.width, kMostTile + 2 * p.reach_w)) {
      for (int64_t cols = 1; cols <= (p.register_tiles ? kMaxCols : 1); ++cols) {
        Tiling t;
        t.images = p.images;
        t.cols = cols;
        t.tile_h = tile_h;
        t.tile_w = ceil_div(width, cols) * cols;
        const int64_t most_rows = std::min({p.max_rows, p.accumulators / cols, tile_h});
        t.rows = ceil_div(tile_h, ceil_div(tile_h, most_rows));  // equal strips rather than a thin last one
        t.tiles_h = ceil_div(p.height, t.tile_h);
        t.tiles_w = ceil_div(p.width, t.tile_w);
        t.lanes = p.lanes;
        t.groups = ceil_div(t.tiles(), p.lanes);
        const double cycles = tiling_cycles(p, t);
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
  int dtype, panel_type;
  int64_t element;  // bytes of a panel element
  Tiling tiling;
  Frame x, y;
  int64_t phases;  // targets a target channel
  std::vector<int32_t> offsets;

  int64_t x_plane() const { return x.plane_size(tiling.lanes) * element; }
  int64_t y_plane() const { return y.plane_size(tiling.lanes) * element; }
};

// Where outputs are one row high and every tap reads row 0 (a generator's first layer: 1x1 inputs, every kernel
// position its own phase), images take the place of rows: a lane then holds several images and a tap still serves a
// whole register tile.
bool fold_images(int64_t height, const Axis& h, int64_t images) {
  return height == 1 && h.shift(0) == 0 && h.shift(h.kernel - 1) == 0 && images > 1;
}

Problem problem_of(const ConvCall& c, const Kernels& k, bool register_tiles) {
  const Geometry& g = *c.geometry;
  const PlanShape& shape = c.plan->shape;
  const int64_t phases_h = c.adjoint ? g.h.stride : 1, phases_w = c.adjoint ? g.w.stride : 1;
  const int panel_type = c.dtype == DType::float64 ? 1 : 0;
  const int64_t height = ceil_div(c.y_height, phases_h), width = ceil_div(c.y_width, phases_w);
  const bool fold = fold_images(height, g.h, c.images);
  Problem p;
  p.images = fold ? 1 : c.images;
  p.height = fold ? c.images : height;
  p.width = width;
  p.reach_h = g.h.shift(g.h.kernel - 1) - g.h.shift(0);
  p.reach_w = g.w.shift(g.w.kernel - 1) - g.w.shift(0);
  p.sources = shape.sources * shape.source_phases;
  p.targets = shape.targets;
  p.taps = shape.taps;
  p.segments = shape.segments();
  p.lanes = k.lanes[panel_type];
  p.accumulators = k.accumulators;
  p.max_rows = k.max_rows;
  p.register_tiles = register_tiles;
  p.fold = fold;
  return p;
}

Frame frame_of(int64_t images, int64_t channels, int64_t height, int64_t width, int64_t phases_h, int64_t phases_w,
               bool fold) {
  Frame f;
  f.channels = channels;
  f.phases_h = phases_h;
  f.phases_w = phases_w;
  f.height = height;
  f.width = width;
  f.channel_stride = height * width;
  f.image_stride = channels * f.channel_stride;
  f.row_stride = fold ? f.image_stride : phases_h * width;
  f.phase_stride = width;
  f.images_as_rows = fold ? images : 0;
  f.size = images * f.image_stride;
  return f;
}

Setup prepare(const ConvCall& c, bool register_tiles) {
  const Geometry& g = *c.geometry;
  const PlanShape& shape = c.plan->shape;
  const Kernels& k = kernels();
  const int panel_type = c.dtype == DType::float64 ? 1 : 0;
  const Problem problem = problem_of(c, k, register_tiles);
  const Tiling t = choose_tiling(problem);

  Setup s{k, static_cast<int>(c.dtype), panel_type, panel_type == 1 ? 8 : 4, t, {}, {}, c.adjoint ? g.phases() : 1, {}};
  const int64_t x_h = c.adjoint ? 1 : g.h.stride, x_w = c.adjoint ? 1 : g.w.stride;
  const int64_t y_h = c.adjoint ? g.h.stride : 1, y_w = c.adjoint ? g.w.stride : 1;
  s.x = frame_of(c.images, shape.sources, c.x_height, c.x_width, x_h, x_w, problem.fold);
  s.y = frame_of(c.images, shape.targets / s.phases, c.y_height, c.y_width, y_h, y_w, problem.fold);
  s.x.first_h = c.adjoint ? -g.h.shift(g.h.kernel - 1) : g.h.shift(0);
  s.x.first_w = c.adjoint ? -g.w.shift(g.w.kernel - 1) : g.w.shift(0);
  s.x.rows = t.tile_h + problem.reach_h;
  s.x.cols = t.tile_w + problem.reach_w;
  s.y.rows = t.tile_h;
  s.y.cols = t.tile_w;

  const double block =
      double(s.x.rows) * double(s.x.cols) * double(t.lanes) * double(shape.block_channels * shape.source_phases);
  if (block > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("geometry: the kernel spreads over " + std::to_string(problem.reach_h) + " x " +
                                std::to_string(problem.reach_w) +
                                " elements, more than the kernels' 2147483647 elements a block can hold");
  }
  s.offsets.resize(static_cast<size_t>(shape.block_channels * g.positions()));
  const int64_t plane = s.x.plane_size(t.lanes);
  const int64_t sign = c.adjoint ? -1 : 1;
  for (int64_t channel = 0, code = 0; channel < shape.block_channels; ++channel) {
    for (int64_t i = 0; i < g.h.kernel; ++i) {
      for (int64_t j = 0; j < g.w.kernel; ++j, ++code) {
        const int64_t phase = c.adjoint ? 0 : g.h.phase(i) * g.w.stride + g.w.phase(j);
        const int64_t row = sign * g.h.shift(i) - s.x.first_h, col = sign * g.w.shift(j) - s.x.first_w;
        s.offsets[code] =
            static_cast<int32_t>((channel * shape.source_phases + phase) * plane + (row * s.x.cols + col) * t.lanes);
      }
    }
  }
  return s;
}

// Cuts the targets into `parts` ranges of about equal work; the phases of a channel stay together.
std::vector<int64_t> balance(const PlanView& plan, int64_t phases, int64_t parts) {
  const int64_t targets = plan.shape.targets;
  std::vector<int64_t> cuts{0};
  if (parts > 1) {
    std::vector<int64_t> work(targets / phases, 2 * phases);
    for (int64_t b = 0; b < plan.shape.blocks; ++b) {
      const int32_t* rows = plan.rows + b * targets;
      for (int64_t c = 0; c < targets / phases; ++c) work[c] += rows[(c + 1) * phases] - rows[c * phases];
    }
    const int64_t total = plan.shape.taps + 2 * targets;
    int64_t sum = 0;
    for (int64_t c = 0; c < targets / phases; ++c) {
      if (sum >= total * static_cast<int64_t>(cuts.size()) / parts) cuts.push_back(c * phases);
      sum += work[c];
    }
  }
  while (static_cast<int64_t>(cuts.size()) <= parts) cuts.push_back(targets);
  return cuts;
}

// body(first, last) over `parts` near-equal ranges of [0, count).
void split(const Team& team, int64_t parts, int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  if (parts == 1) return body(0, count);
  team.run(parts, [&](int64_t i) { body(count * i / parts, count * (i + 1) / parts); });
}

// Source planes of block b start here.
const char* block_at(const Setup& s, const PlanView& plan, const char* x_panel, int64_t b) {
  return x_panel + b * plan.shape.block_channels * plan.shape.source_phases * s.x_plane();
}

TapRange block_taps(const Setup& s, const PlanView& plan, int64_t b, int64_t first, int64_t last) {
  return {plan.rows + b * plan.shape.targets, plan.codes, s.offsets.data(), first, last};
}

}  // namespace

void gather(const ConvCall& c, const void* x, const void* values, const void* bias, void* y, const Team& team) {
  if (c.images == 0) return;
  const Setup s = prepare(c, true);
  const PlanView& plan = *c.plan;
  const int64_t groups = s.tiling.groups, threads = std::max<int64_t>(1, team.threads);
  // Groups are independent; a thread takes whole groups with panels of its own unless that leaves threads idle.
  const bool by_group = threads == 1 || groups % threads == 0 || groups >= 4 * threads;
  const int64_t panels = by_group ? std::min(threads, groups) : 1;

  Layout layout;
  const int64_t values_at = layout.add(plan.shape.taps * s.element);
  const int64_t init_at = layout.add(s.y.channels * s.element);
  const int64_t x_bytes = s.x.planes() * s.x_plane(), y_bytes = s.y.planes() * s.y_plane();
  const int64_t x_at = layout.add(panels * x_bytes), y_at = layout.add(panels * y_bytes);
  char* const base = workspace.reserve(layout.size());
  char* const tap_values = base + values_at;
  char* const init = base + init_at;

  split(team, plan.shape.taps < 1 << 15 ? 1 : threads, plan.shape.taps,
        [&](int64_t first, int64_t last) { s.k.order_values[s.dtype](plan.order, first, last, values, tap_values); });
  std::memset(init, 0, static_cast<size_t>(s.y.channels * s.element));
  if (bias) {
    std::vector<int32_t> identity(s.y.channels);
    for (int64_t i = 0; i < s.y.channels; ++i) identity[i] = static_cast<int32_t>(i);
    s.k.order_values[s.dtype](identity.data(), 0, s.y.channels, bias, init);
  }

  // Strips of rows outermost: a strip of all targets stays in the second-level cache while the source blocks add to it.
  const auto compute = [&](const char* x_panel, char* y_panel, int64_t first, int64_t last) {
    for (int64_t row = 0; row < s.tiling.tile_h; row += s.tiling.rows) {
      for (int64_t b = 0; b < plan.shape.blocks; ++b) {
        s.k.gather[s.panel_type](block_taps(s, plan, b, first, last), s.tiling, row, tap_values,
                                 block_at(s, plan, x_panel, b), s.x.cols, y_panel, b == 0 ? init : nullptr, s.phases);
      }
    }
  };
  if (by_group) {
    const auto work = [&](int64_t worker) {
      char* const x_panel = base + x_at + worker * x_bytes;
      char* const y_panel = base + y_at + worker * y_bytes;
      for (int64_t g = groups * worker / panels; g < groups * (worker + 1) / panels; ++g) {
        s.k.pack[s.dtype](s.x, s.tiling, g, 0, s.x.channels, x, x_panel);
        compute(x_panel, y_panel, 0, plan.shape.targets);
        s.k.unpack[s.dtype](s.y, s.tiling, g, 0, s.y.channels, y_panel, y);
      }
    };
    if (panels == 1) return work(0);
    return team.run(panels, work);
  }
  const std::vector<int64_t> cuts = balance(plan, s.phases, threads);
  for (int64_t g = 0; g < groups; ++g) {
    split(team, threads, s.x.channels,
          [&](int64_t first, int64_t last) { s.k.pack[s.dtype](s.x, s.tiling, g, first, last, x, base + x_at); });
    team.run(threads, [&](int64_t i) {
      compute(base + x_at, base + y_at, cuts[i], cuts[i + 1]);
      s.k.unpack[s.dtype](s.y, s.tiling, g, cuts[i] / s.phases, cuts[i + 1] / s.phases, base + y_at, y);
    });
  }
}

void wgrad(const ConvCall& c, const void* gy, const void* x, void* dv, const Team& team) {
  const PlanView& plan = *c.plan;
  const int64_t taps = plan.shape.taps, threads = std::max<int64_t>(1, team.threads);
  const int64_t value_bytes = c.dtype == DType::float64 ? 8 : c.dtype == DType::float32 ? 4 : 2;
  if (taps == 0) return;
  std::memset(dv, 0, static_cast<size_t>(taps * value_bytes));
  if (c.images == 0) return;
  const Setup s = prepare(c, false);

  // Several groups are packed between two barriers; each tap belongs to one thread and sums its groups in order, so the
  // result does not depend on the number of threads.
  const int64_t x_bytes = s.x.planes() * s.x_plane(), y_bytes = s.y.planes() * s.y_plane();
  constexpr int64_t kPanelBytes = 4 << 20;
  const int64_t batch = std::clamp<int64_t>(kPanelBytes / (x_bytes + y_bytes), 1, s.tiling.groups);
  Layout layout;
  const int64_t x_at = layout.add(batch * x_bytes), y_at = layout.add(batch * y_bytes),
                sums_at = layout.add(taps * s.element);
  char* const base = workspace.reserve(layout.size());
  char* const sums = base + sums_at;
  std::memset(sums, 0, static_cast<size_t>(taps * s.element));

  const std::vector<int64_t> cuts = balance(plan, s.phases, threads);
  for (int64_t g0 = 0; g0 < s.tiling.groups; g0 += batch) {
    const int64_t n = std::min(batch, s.tiling.groups - g0);
    split(team, threads, n * (s.x.channels + s.y.channels), [&](int64_t first, int64_t last) {
      // Channel numbers run over the x panels of the batch, then over its gy panels.
      const auto pack_range = [&](const Frame& frame, int64_t from, int64_t to, const void* tensor, int64_t at,
                                  int64_t bytes) {
        for (int64_t i = 0; i < n; ++i) {
          const int64_t a = std::clamp<int64_t>(from - i * frame.channels, 0, frame.channels);
          const int64_t z = std::clamp<int64_t>(to - i * frame.channels, 0, frame.channels);
          if (a < z) s.k.pack[s.dtype](frame, s.tiling, g0 + i, a, z, tensor, base + at + i * bytes);
        }
      };
      const int64_t x_channels = n * s.x.channels;
      pack_range(s.x, first, std::min(last, x_channels), x, x_at, x_bytes);
      pack_range(s.y, first - x_channels, last - x_channels, gy, y_at, y_bytes);
    });
    const auto work = [&](int64_t i) {
      for (int64_t b = 0; b < plan.shape.blocks; ++b) {
        for (int64_t j = 0; j < n; ++j) {
          s.k.wgrad[s.panel_type](block_taps(s, plan, b, cuts[i], cuts[i + 1]), s.tiling, base + y_at + j * y_bytes,
                                  block_at(s, plan, base + x_at + j * x_bytes, b), s.x.cols, sums);
        }
      }
    };
    if (threads == 1) {
      work(0);
    } else {
      team.run(threads, work);
    }
  }
  s.k.scatter_values[s.dtype](plan.order, 0, taps, sums, dv);
}

double gather_cycles(const ConvCall& c) {
  const Problem problem = problem_of(c, kernels(), true);
  return tiling_cycles(problem, choose_tiling(problem));
}

int64_t workspace_bytes() { return workspace_total.load(); }

}  // namespace sparsegan
