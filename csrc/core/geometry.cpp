#include "geometry.h"

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

namespace sparsegan {
namespace {

constexpr int64_t kMaxChannels = int64_t{1} << 24;
constexpr int64_t kMaxStep = int64_t{1} << 20;       // for stride, padding and dilation
constexpr int64_t kMaxPositions = int64_t{1} << 16;  // a tap's code is 16 bits
constexpr int64_t kMaxVector = 64;

void require(bool ok, const char* name, int64_t value, const char* accepted) {
  if (!ok) {
    throw std::invalid_argument(std::string("geometry: ") + name + " is " + std::to_string(value) + "; it must be " +
                                accepted);
  }
}

}  // namespace

int64_t Axis::window(bool adjoint, int64_t tile) const {
  if (adjoint) return tile + shift(kernel - 1) - shift(0);
  int64_t total = 0;
  for (int64_t p = 0; p < stride; ++p) {
    int64_t first = 0, last = -1;
    for (int64_t i = 0; i < kernel; ++i) {
      if (phase(i) != p) continue;
      if (last < first) first = shift(i);
      last = shift(i);
    }
    if (last >= first) total += tile + last - first;
  }
  return total;
}

Geometry Geometry::from_list(const std::vector<int64_t>& list) {
  if (list.size() != 13) {
    throw std::invalid_argument(
        "geometry has " + std::to_string(list.size()) +
        " numbers; it must have 13: coarse and fine channels, groups, kernel, stride, padding, dilation, vectors");
  }
  Geometry g;
  g.coarse_channels = list[0];
  g.fine_channels = list[1];
  g.groups = list[2];
  g.h = {list[3], list[5], list[7], list[9]};
  g.w = {list[4], list[6], list[8], list[10]};
  g.coarse_vector = list[11];
  g.fine_vector = list[12];
  for (const int64_t channels : {g.coarse_channels, g.fine_channels}) {
    require(channels >= 1 && channels <= kMaxChannels, "a channel count", channels, "from 1 to 16777216");
  }
  require(g.groups >= 1 && g.coarse_channels % g.groups == 0 && g.fine_channels % g.groups == 0, "groups", g.groups,
          "a divisor of both channel counts");
  for (const Axis* axis : {&g.h, &g.w}) {
    require(axis->kernel >= 1 && axis->kernel <= kMaxPositions, "kernel size", axis->kernel, "from 1 to 65536");
    require(axis->stride >= 1 && axis->stride <= kMaxStep, "stride", axis->stride, "from 1 to 1048576");
    require(axis->padding >= 0 && axis->padding <= kMaxStep, "padding", axis->padding, "from 0 to 1048576");
    require(axis->dilation >= 1 && axis->dilation <= kMaxStep, "dilation", axis->dilation, "from 1 to 1048576");
  }
  require(g.positions() <= kMaxPositions, "kernel height x width", g.positions(), "at most 65536");
  for (const auto& [vector, channels] : {std::pair{g.coarse_vector, g.coarse_channels_per_group()},
                                         std::pair{g.fine_vector, g.fine_channels_per_group()}}) {
    require(vector >= 1 && vector <= kMaxVector && channels % vector == 0, "a vector", vector,
            "from 1 to 64 and a divisor of the channels per group on its side");
  }
  require(g.coarse_vector == 1 || g.fine_vector == 1, "coarse vector", g.coarse_vector, "1 where fine vector is not");
  require(g.positions() * g.vector() <= kMaxPositions, "kernel height x width x vector", g.positions() * g.vector(),
          "at most 65536");
  require(g.phases() <= kMaxPositions, "stride height x width", g.phases(), "at most 65536");
  require(g.weight_size() < (int64_t{1} << 31), "the dense weight's size", g.weight_size(), "below 2147483648");
  return g;
}

}  // namespace sparsegan
