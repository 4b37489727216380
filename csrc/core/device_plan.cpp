#include "device_plan.h"

#include <algorithm>
#include <compare>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

#include "unit.h"

namespace sparsegan {

Bands Bands::of(const Axis& axis, bool adjoint, int64_t align) {
  constexpr int64_t kMaxReach = int64_t{1} << 28;
  const bool by_phase = !adjoint && axis.stride > 2;
  Bands bands;
  bands.step = adjoint || by_phase ? 1 : axis.stride;
  bands.spread = by_phase ? axis.stride : 1;
  struct Read {
    int64_t phase, offset, kernel_index;
    auto operator<=>(const Read&) const = default;
  };
  std::vector<Read> reads;
  for (int64_t i = 0; i < axis.kernel; ++i) {
    reads.push_back(by_phase ? Read{axis.phase(i), axis.shift(i), i}
                             : Read{0, adjoint ? -axis.shift(i) : axis.offset(i), i});
    if (std::abs(axis.offset(i)) > kMaxReach) {
      throw std::invalid_argument("geometry: kernel index " + std::to_string(i) + " lies " +
                                  std::to_string(axis.offset(i)) + " elements off; the CUDA kernels take at most " +
                                  std::to_string(kMaxReach));
    }
  }
  std::sort(reads.begin(), reads.end());
  bands.band.resize(reads.size());
  bands.place.resize(reads.size());
  for (const auto& [phase, offset, i] : reads) {
    if (bands.starts.empty() || bands.phases.back() != phase || offset - bands.starts.back() >= kWindow) {
      bands.starts.push_back(offset - ((offset % align) + align) % align);
      bands.phases.push_back(phase);
    }
    bands.band[i] = bands.count() - 1;
    bands.place[i] = offset - bands.starts.back();
    bands.reach = std::max(bands.reach, bands.place[i] + 1);
  }
  return bands;
}

DevicePlanShape device_plan_shape(const Geometry& g, bool adjoint, int64_t taps) {
  if (g.vector() != 1) {
    throw std::invalid_argument("geometry: a kept unit has " + std::to_string(g.vector()) +
                                " weights; the CUDA kernels take single elements, vectors go to the Triton kernels");
  }
  DevicePlanShape shape;
  shape.adjoint = adjoint;
  shape.taps = taps;
  shape.groups = g.groups;
  shape.target_phases = adjoint ? g.phases() : 1;
  shape.group_sources = adjoint ? g.coarse_channels_per_group() : g.fine_channels_per_group();
  shape.group_targets = (adjoint ? g.fine_channels_per_group() : g.coarse_channels_per_group()) * shape.target_phases;
  shape.rows = Bands::of(g.h, adjoint, 1);
  shape.columns = Bands::of(g.w, adjoint, kFour);
  if (shape.slabs() > kMaxSlabs) {
    throw std::invalid_argument("geometry: " + std::to_string(shape.group_sources) + " source channels per group x " +
                                std::to_string(shape.bands()) + " bands of the kernel; the CUDA kernels take at most " +
                                std::to_string(kMaxSlabs));
  }
  check_plan_size(shape.size());
  return shape;
}

void compile_device_plan(const Geometry& g, bool adjoint, const int32_t* support, int64_t taps, int32_t* out) {
  const DevicePlanShape shape = device_plan_shape(g, adjoint, taps);
  const int64_t slabs = shape.slabs();
  int32_t* at = out;
  for (int64_t r = 0; r < shape.rows.count(); ++r) {
    for (int64_t c = 0; c < shape.columns.count(); ++c) {
      for (const int64_t number :
           {shape.rows.starts[r], shape.rows.phases[r], shape.columns.starts[c], shape.columns.phases[c]}) {
        *at++ = static_cast<int32_t>(number);
      }
    }
  }
  int32_t* const first = out + shape.first_at();
  int32_t* const starts = out + shape.starts_at();
  std::fill(first, first + shape.bundles() * slabs + 1, 0);
  std::fill(starts, starts + shape.targets() + 1, 0);

  struct Place {
    int64_t target, segment;  // segment: bundle * slabs + slab
    uint32_t code;
  };
  const TapDecoder decode(g, adjoint);
  const auto place = [&](int32_t unit) -> Place {
    const Tap tap = decode(unit);
    const int64_t group = tap.source / shape.group_sources, source = tap.source % shape.group_sources;
    const int64_t target = tap.target * shape.target_phases + tap.phase, in_group = target % shape.group_targets;
    const int64_t slab =
        source * shape.bands() + shape.rows.band[tap.row] * shape.columns.count() + shape.columns.band[tap.column];
    const int64_t row = slab * kWindow + shape.rows.place[tap.row];
    const int64_t code = (row * kWindow + shape.columns.place[tap.column]) * kBundle + in_group % kBundle;
    return {target, (group * shape.group_bundles() + in_group / kBundle) * slabs + slab, static_cast<uint32_t>(code)};
  };

  for (int64_t v = 0; v < taps; ++v) {
    const Place found = place(support[v]);
    ++first[found.segment + 1];
    ++starts[found.target + 1];
  }
  for (int64_t s = 0; s < shape.bundles() * slabs; ++s) first[s + 1] += first[s];
  for (int64_t t = 0; t < shape.targets(); ++t) starts[t + 1] += starts[t];

  // A counting sort by segment. Each segment, which has only a few taps, is then sorted by code.
  std::vector<std::pair<uint32_t, int32_t>> sorted(static_cast<size_t>(taps));
  std::vector<int32_t> next(first, first + shape.bundles() * slabs);
  for (int64_t v = 0; v < taps; ++v) {
    const Place found = place(support[v]);
    sorted[next[found.segment]++] = {found.code, static_cast<int32_t>(v)};
  }
  for (int64_t s = 0; s < shape.bundles() * slabs; ++s) {
    std::sort(sorted.begin() + first[s], sorted.begin() + first[s + 1]);
  }
  for (int64_t t = 0; t < taps; ++t) {
    out[shape.codes_at() + t] = static_cast<int32_t>(sorted[t].first);
    out[shape.value_index_at() + t] = sorted[t].second;
  }
  if (!adjoint) return;
  next.assign(starts, starts + shape.targets());
  for (int64_t v = 0; v < taps; ++v) {
    const int32_t slot = next[place(support[v]).target]++;
    out[shape.units_at() + slot] = support[v];
    out[shape.places_at() + slot] = static_cast<int32_t>(v);
  }
}

}  // namespace sparsegan
