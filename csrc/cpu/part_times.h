// The time that sparse_conv spends in each of its parts.
#pragma once

#include <chrono>
#include <cstdint>

namespace sparsegan {

// Nanoseconds that all threads have spent in the parts since the process began.
struct PartTimes {
  int64_t pack = 0, multiply = 0, unpack = 0, order = 0;
};
PartTimes part_times();

enum class Part { pack, multiply, unpack, order };

// Adds the time from the timer's construction to stop(), or to its destruction, to a part.
class PartTimer {
 public:
  explicit PartTimer(Part part) : part_(part), start_(std::chrono::steady_clock::now()) {}
  ~PartTimer() { stop(); }
  PartTimer(const PartTimer&) = delete;
  PartTimer& operator=(const PartTimer&) = delete;

  void stop();

 private:
  Part part_;
  std::chrono::steady_clock::time_point start_;
  bool running_ = true;
};

}  // namespace sparsegan
