#include <algorithm>
#include <cstring>
#include <vector>

#include "conv.h"
#include "conv_setup.h"
#include "taps.h"
#include "workspace.h"

namespace sparsegan {

void wgrad(const ConvCall& c, const void* gy, const void* x, void* dv, const ThreadPool& pool) {
  const PlanView& plan = *c.plan;
  const int64_t vector = c.geometry->vector(), nnz = plan.shape.taps * vector;
  const int64_t threads = std::max<int64_t>(1, pool.threads);
  const int64_t value_bytes = kDTypes[static_cast<int>(c.dtype)].bytes;
  if (nnz == 0) return;
  std::memset(dv, 0, static_cast<size_t>(nnz * value_bytes));
  if (c.images == 0) return;
  const ConvSetup s = conv_setup(c, false);

  // Several groups are packed between two barriers. One thread at a time works on a tap and adds the groups in order,
  // so that the result does not depend on the number of threads.
  constexpr int64_t kPanelBytes = 4 << 20;
  const int64_t batch = std::clamp<int64_t>(kPanelBytes / (s.x_panel() + s.y_panel()), 1, s.tiling.groups);
  const bool in_place = !plan.value_index && value_bytes == s.element;  // the sums have the order and type of dv
  WorkspaceLayout layout;
  const TapLayout tap_layout(s, plan, false, layout);
  const int64_t x_at = layout.add(batch * s.x_panel()), y_at = layout.add(batch * s.y_panel()),
                sums_at = layout.add(in_place ? 0 : nnz * s.element);
  char* const base = reserve_workspace(layout.size());
  char* const sums = in_place ? static_cast<char*>(dv) : base + sums_at;
  const Taps taps = resolve_taps(c, s, tap_layout, base, nullptr, pool);
  if (!in_place) std::memset(sums, 0, static_cast<size_t>(nnz * s.element));

  const int64_t pieces = threads == 1 ? 1 : kPiecesPerThread * threads;
  const std::vector<int64_t> cuts = cut_targets(plan, pieces, plan.shape.target_phases);
  for (int64_t g0 = 0; g0 < s.tiling.groups; g0 += batch) {
    const int64_t n = std::min(batch, s.tiling.groups - g0);
    // Channel numbers run over the x panels of the batch, then over its gy panels.
    const int64_t x_channels = n * s.x.channels, channels = x_channels + n * s.y.channels;
    const auto pack = [&](const Frame& frame, int64_t first, int64_t last, const void* tensor, char* panels,
                          int64_t bytes) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t a = std::clamp<int64_t>(first - i * frame.channels, 0, frame.channels);
        const int64_t z = std::clamp<int64_t>(last - i * frame.channels, 0, frame.channels);
        if (a < z) {
          s.k.pack[s.dtype](frame, s.tiling, g0 + i, a, z, InputTransform{}, tensor, panels + i * bytes);
        }
      }
    };
    parallel_for_dynamic(pool, threads, pieces, [&](int64_t piece, int64_t) {
      const int64_t first = channels * piece / pieces, last = channels * (piece + 1) / pieces;
      pack(s.x, first, std::min(last, x_channels), x, base + x_at, s.x_panel());
      pack(s.y, first - x_channels, last - x_channels, gy, base + y_at, s.y_panel());
    });
    const auto kernel = s.k.wgrad[s.panel_type][s.width];
    parallel_for_dynamic(pool, threads, pieces, [&](int64_t piece, int64_t) {
      for (int64_t j = 0; j < n; ++j) {
        for (const Join& join : taps.joins) {
          kernel(codes_of(s, plan, taps, join, cuts[piece], cuts[piece + 1]), s.tiling, s.x, s.y,
                 base + y_at + j * s.y_panel(), base + x_at + j * s.x_panel() + span_offset(s, plan.shape, join), sums);
        }
      }
    });
  }
  if (!in_place &&
      !s.k.scatter_values[s.dtype](plan.value_index, 0, plan.shape.taps, plan.shape.taps, vector, sums, dv)) {
    bad_plan("a tap names a value that is not there");
  }
}

}  // namespace sparsegan
