// The threads of the caller, and two ways to run a loop on them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace sparsegan {

// run(count, body) calls body(i) for every i < count, in parallel, and returns when all are done.
struct ThreadPool {
  int64_t threads = 1;
  std::function<void(int64_t, const std::function<void(int64_t)>&)> run;
};

// Calls body(first, last) for `parts` ranges of [0, count) of nearly equal size.
template <class Body>
void parallel_for_ranges(const ThreadPool& pool, int64_t parts, int64_t count, const Body& body) {
  if (parts == 1) return body(0, count);
  pool.run(parts, [&](int64_t i) { body(count * i / parts, count * (i + 1) / parts); });
}

// Calls body(i, worker) for every i of [0, count). The first of `workers` threads that is free takes the next i.
template <class Body>
void parallel_for_dynamic(const ThreadPool& pool, int64_t workers, int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t worker) {
    for (int64_t i = next++; i < count; i = next++) body(i, worker);
  };
  if (workers == 1) return work(0);
  pool.run(workers, work);
}

// Pieces of work per thread in a dynamic loop. Another process on a core then delays one piece, not all work of a
// thread.
constexpr int64_t kPiecesPerThread = 4;

}  // namespace sparsegan
