#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "conv.h"
#include "conv_setup.h"
#include "part_times.h"
#include "taps.h"
#include "tiling.h"
#include "workspace.h"

namespace sparsegan {
namespace {

// Writes the integer sums of the targets without taps: -offset times the sum of the target's weights, because the panel
// holds x + offset (kernels/lanes.h). Throws where the sums of a target could leave 32 bits.
template <class Weight>
void write_first_sums(const PlanView& plan, const void* values, int64_t offset, int64_t most, int32_t* first) {
  const PlanShape& shape = plan.shape;
  const auto* const weights = static_cast<const Weight*>(values);
  for (int64_t target = 0; target < shape.targets; ++target) {
    const int64_t begin = plan.rows[target * shape.blocks], end = plan.rows[(target + 1) * shape.blocks];
    int64_t sum = 0, size = 0;
    for (int64_t i = begin * shape.depth; i < end * shape.depth; ++i) {
      sum += weights[i];
      size += std::abs(int32_t{weights[i]});
    }
    if (size * (most + 2 * offset) > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument("values: the weights of an output add up to " + std::to_string(size) +
                                  " without their signs; with inputs of up to " + std::to_string(most) +
                                  " the sums may leave 32 bits");
    }
    first[target] = static_cast<int32_t>(-offset * sum);
  }
}

}  // namespace

int64_t shared_panel_bytes(ConvCall& c) {
  const ConvSetup s = conv_setup(c, true);
  c.shared.tile_h = s.tiling.tile_h;
  c.shared.tile_w = s.tiling.tile_w;
  return s.tiling.groups * c.shared.channels / s.x.lane_channels * c.plan->shape.source_phases * s.x_plane();
}

void sparse_conv(const ConvCall& c, const void* x, const void* values, const void* bias, void* y,
                 const ThreadPool& pool) {
  if (c.images == 0) return;
  const ConvSetup s = conv_setup(c, true);
  const PlanView& plan = *c.plan;
  const int64_t groups = s.tiling.groups, threads = std::max<int64_t>(1, pool.threads);
  // Each thread takes whole groups of tiles and has panels of its own. The groups that do not divide evenly among the
  // threads are cut by targets. Each thread then packs such a group for itself: a common panel would pass from core to
  // core, which takes longer. With kMany threads or more per such group, a common panel is faster.
  constexpr int64_t kMany = 4;
  const int64_t left = groups >= kMany * threads ? 0 : groups % threads;
  const bool common_panel = left > 0 && threads >= kMany * left;
  const int64_t panels = common_panel && groups == left ? 1 : left > 0 ? threads : std::min(threads, groups);
  PartTimer order_timer(Part::order);

  WorkspaceLayout layout;
  const TapLayout tap_layout(s, plan, true, layout);
  const bool integers = kDTypes[s.dtype].integer;
  const int64_t channels = plan.shape.target_channels(), bias_at = layout.add(channels * s.element);
  const int64_t first_at = layout.add(integers ? plan.shape.targets * s.element : 0);
  const int64_t x_at = layout.add(c.shared.used() ? 0 : panels * s.x_panel()), y_at = layout.add(panels * s.y_panel());
  const int64_t moments = c.norm.scale ? s.y.channels * kMoments * s.tiling.lanes * s.element : 0;
  const int64_t moments_at = layout.add(groups * moments);
  char* const base = reserve_workspace(layout.size());
  char* const own_bias = base + bias_at;
  const Taps taps = resolve_taps(c, s, tap_layout, base, values, pool);
  std::memset(own_bias, 0, static_cast<size_t>(channels * s.element));
  if (bias) s.k.gather_values[s.dtype](nullptr, 0, channels, channels, 1, bias, own_bias);
  auto* const first_sums = reinterpret_cast<int32_t*>(base + first_at);
  const auto most = static_cast<int64_t>(c.input_transform.most);
  if (c.dtype == DType::float32_as_int16) write_first_sums<int16_t>(plan, values, 0, most, first_sums);
  if (c.dtype == DType::float32_as_int8) write_first_sums<int8_t>(plan, values, 128, most, first_sums);
  const SumScale sum_scale{c.sum_scale, reinterpret_cast<const float*>(own_bias)};
  const void* const init = integers ? static_cast<const void*>(first_sums) : own_bias;
  std::memset(base + moments_at, 0, static_cast<size_t>(groups * moments));
  order_timer.stop();

  const auto pack = [&](int64_t group, int64_t first, int64_t last, char* panel) {
    const PartTimer timer(Part::pack);
    s.k.pack[s.dtype](s.x, s.tiling, group, first, last, c.input_transform, x, panel);
  };
  // Unpacks the channels of targets [first, last).
  const auto unpack = [&](int64_t group, int64_t first, int64_t last, const char* panel) {
    const PartTimer timer(Part::unpack);
    const auto channel = [&](int64_t target) {
      return target / plan.shape.target_phases * plan.shape.width / (c.shuffle * c.shuffle);
    };
    s.k.unpack[s.dtype](s.y, s.tiling, group, channel(first), channel(last), panel, c.output_transform,
                        moments ? base + moments_at + group * moments : nullptr, y);
  };
  // As many targets at a time as have outputs of a register tile that fit into the second-level cache, where the source
  // blocks add to them.
  constexpr int64_t kOutputBytes = 160 * 1024;
  const int64_t tile_bytes = s.tiling.rows * s.tiling.cols * s.tiling.lanes * s.element * plan.shape.width;
  const int64_t phases = plan.shape.target_phases,
                run = ceil_div(std::max<int64_t>(1, kOutputBytes / tile_bytes), phases) * phases;
  const auto multiply = [&](const char* x_panel, char* y_panel, int64_t first, int64_t last) {
    const PartTimer timer(Part::multiply);
    for (int64_t row = 0; row < s.tiling.tile_h; row += s.tiling.rows) {
      for (int64_t col = 0; col < s.tiling.tile_w; col += s.tiling.cols) {  // tile_w is a multiple of cols
        for (int64_t begin = first; begin < last; begin += run) {
          const int64_t end = std::min(begin + run, last), joins = std::ssize(taps.joins);
          for (int64_t j = 0; j < joins; ++j) {
            const Join& join = taps.joins[j];
            const char* const span = x_panel + span_offset(s, plan.shape, join);
            const void* const start = j == 0 ? init : nullptr;
            const SumScale* const scale = integers && j + 1 == joins ? &sum_scale : nullptr;
            if (taps.records) {
              s.k.sparse_conv[s.panel_type][s.width](records_of(plan.shape, taps, j, begin, end), s.tiling, s.x, s.y,
                                                     row, col, span, y_panel, start, scale);
            } else {
              s.k.sparse_conv_codes[s.panel_type][s.width](codes_of(s, plan, taps, join, begin, end), s.tiling, s.x,
                                                           s.y, row, col, taps.values, span, y_panel, start, scale);
            }
          }
        }
      }
    }
  };
  // Packs the channels that the calls before this one have not packed, of all groups.
  const int64_t shared_group = c.shared.channels / s.x.lane_channels * s.x_plane() * plan.shape.source_phases;
  const auto shared_of = [&](int64_t group) { return static_cast<char*>(c.shared.data) + group * shared_group; };
  if (c.shared.used()) {
    const int64_t packed = c.shared.packed / s.x.lane_channels, fresh = s.x.channels - packed;
    const int64_t cut = threads == 1 ? 1 : kPiecesPerThread * threads;
    parallel_for_dynamic(pool, threads, fresh > 0 ? groups * cut : 0, [&](int64_t i, int64_t) {
      const int64_t part = i % cut, first = packed + fresh * part / cut;
      pack(i / cut, first, packed + fresh * (part + 1) / cut, shared_of(i / cut));
    });
  }
  const int64_t parts = kPiecesPerThread * threads;
  const std::vector<int64_t> cuts = cut_targets(plan, parts, plan.shape.target_phases * c.shuffle * c.shuffle);
  struct Piece {
    int64_t group, first, last;
  };
  std::vector<Piece> pieces;
  for (int64_t g = 0; g < groups - left; ++g) pieces.push_back({g, 0, plan.shape.targets});
  for (int64_t i = 0; i < left * parts && !common_panel; ++i) {
    pieces.push_back({groups - left + i / parts, cuts[i % parts], cuts[i % parts + 1]});
  }
  std::vector<int64_t> packed(panels, -1);
  parallel_for_dynamic(pool, panels, std::ssize(pieces), [&](int64_t i, int64_t worker) {
    const auto [group, first, last] = pieces[i];
    char* const x_panel = c.shared.used() ? shared_of(group) : base + x_at + worker * s.x_panel();
    char* const y_panel = base + y_at + worker * s.y_panel();
    if (packed[worker] != group && !c.shared.used()) pack(group, 0, s.x.channels, x_panel);
    packed[worker] = group;
    multiply(x_panel, y_panel, first, last);
    unpack(group, first, last, y_panel);
  });
  for (int64_t g = groups - left; g < groups && common_panel; ++g) {
    char* const x_panel = c.shared.used() ? shared_of(g) : base + x_at;
    parallel_for_dynamic(pool, threads, c.shared.used() ? 0 : parts, [&](int64_t i, int64_t) {
      pack(g, s.x.channels * i / parts, s.x.channels * (i + 1) / parts, x_panel);
    });
    parallel_for_dynamic(pool, threads, parts, [&](int64_t i, int64_t) {
      multiply(x_panel, base + y_at, cuts[i], cuts[i + 1]);
      unpack(g, cuts[i], cuts[i + 1], base + y_at);
    });
  }
  if (moments) {
    parallel_for_ranges(pool, std::min(threads, s.y.channels), s.y.channels, [&](int64_t first, int64_t last) {
      write_instance_norm(c.norm, s.panel_type, s.tiling, s.y.channels, first, last, base + moments_at);
    });
  }
}

}  // namespace sparsegan
