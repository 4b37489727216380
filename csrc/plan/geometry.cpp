#include "geometry.h"

#include <initializer_list>
#include <stdexcept>
#include <string>

namespace sparsegan {
namespace {

constexpr int64_t kMaxChannels = int64_t{1} << 24;
constexpr int64_t kMaxStep = int64_t{1} << 20;       // stride, padding, dilation
constexpr int64_t kMaxPositions = int64_t{1} << 16;  // a tap's code is 16 bits

void require(bool ok, const char* name, int64_t value, const char* accepted) {
  if (!ok) {
    throw std::invalid_argument(std::string("geometry: ") + name + " is " + std::to_string(value) + "; it must be " +
                                accepted);
  }
}

}  // namespace

Geometry Geometry::from_list(const std::vector<int64_t>& list) {
  if (list.size() != 11) {
    throw std::invalid_argument(
        "geometry has " + std::to_string(list.size()) +
        " numbers; it must have 11: coarse and fine channels, groups, kernel, stride, padding, dilation");
  }
  Geometry g;
  g.coarse_channels = list[0];
  g.fine_channels = list[1];
  g.groups = list[2];
  g.h = {list[3], list[5], list[7], list[9]};
  g.w = {list[4], list[6], list[8], list[10]};
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
  require(g.phases() <= kMaxPositions, "stride height x width", g.phases(), "at most 65536");
  require(g.weight_size() < (int64_t{1} << 31), "the dense weight's size", g.weight_size(), "below 2147483648");
  return g;
}

}  // namespace sparsegan
