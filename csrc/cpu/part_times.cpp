#include "part_times.h"

#include <atomic>

namespace sparsegan {
namespace {

std::atomic<int64_t> nanoseconds[4];  // indexed by Part

}  // namespace

void PartTimer::stop() {
  const auto passed = std::chrono::steady_clock::now() - start_;
  if (running_) {
    nanoseconds[static_cast<int>(part_)] += std::chrono::duration_cast<std::chrono::nanoseconds>(passed).count();
  }
  running_ = false;
}

PartTimes part_times() { return {nanoseconds[0], nanoseconds[1], nanoseconds[2], nanoseconds[3]}; }

}  // namespace sparsegan
