// Kernels that test the executor: two correct ones, and variants with one mistake each, which the executor must report.
#include <exception>
#include <string>

#include "../../../csrc/cuda/async.h"
#include "../../../csrc/cuda/launch.h"

namespace examples {

using namespace sparsegan::cuda;

enum class Mistake {
  none,
  no_barrier,         // between writing a tile and reading it
  warp_barrier,       // where a block barrier is needed
  no_second_barrier,  // between reading a tile and writing the next one
  shared_bounds,      // one element past the end of shared memory
  global_bounds,      // one element past the end of a buffer
  array_bounds,       // one element past the end of a thread's own array
  write_input,
  unwritten,              // a shared element is read that no thread writes
  other_block,            // two blocks write the same elements
  exited,                 // a thread leaves before a barrier
  other_barrier,          // threads wait at different barriers
  missing_lane,           // a lane of the mask is not at the shuffle
  no_warp_barrier,        // a shuffle instead, which orders no memory accesses
  no_wait,                // a copy is read before its thread waits for it
  no_barrier_after_wait,  // a wait covers only the thread's own copies
  misaligned,             // four floats are read from an address that is not a multiple of 16 bytes
  too_much_shared,        // more shared memory than a launch gets by default
};

constexpr int kTile = 32, kRows = 8;

// y [n, n] = x [n, n] transposed. A block transposes one column of tiles.
template <Mistake mistake>
__global__ void __launch_bounds__(kTile* kRows) transpose(const float* __restrict__ x, float* __restrict__ y, int n) {
  __shared__ float staged[kTile][kTile + 1];
  const int column = threadIdx.x, first = threadIdx.y, block = mistake == Mistake::other_block ? 0 : blockIdx.x;
  for (int top = 0; top < n; top += kTile) {
    for (int r = first; r < kTile; r += kRows)
      if (mistake != Mistake::unwritten || r != 5 || column != 7)
        staged[r][column] = x[(top + r) * n + blockIdx.x * kTile + column];
    if (mistake == Mistake::exited && first == 3 && column == 9) return;
    if (mistake == Mistake::warp_barrier)
      __syncwarp();
    else if (mistake == Mistake::other_barrier && first == 0)
      __syncthreads();
    else if (mistake != Mistake::no_barrier)
      __syncthreads();
    for (int r = first; r < kTile; r += kRows) y[(block * kTile + r) * n + top + column] = staged[column][r];
    if (mistake != Mistake::no_second_barrier) __syncthreads();
  }
  if (mistake == Mistake::global_bounds && first == 0 && column == 0) y[0] = x[n * n];
  if (mistake == Mistake::write_input) const_cast<float*>(x)[column] = 0;
}

constexpr int kThreads = 128, kEach = 4, kWarps = kThreads / 32;

// y [blocks]: the sum of each block's part of x [n]. n is a multiple of kEach.
template <Mistake mistake>
__global__ void __launch_bounds__(kThreads) sum(const float* __restrict__ x, float* __restrict__ y, int n) {
  auto* staged = reinterpret_cast<float*>(dynamic_shared());  // [kThreads, kEach]
  float* sums = staged + kThreads * kEach;                    // [kWarps]
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int at = (blockIdx.x * kThreads + thread) * kEach;
  copy_async<16>(staged + thread * kEach, x + at, at < n);
  if (mistake != Mistake::no_wait) wait_copies();
  if (mistake != Mistake::no_barrier_after_wait) __syncthreads();
  const float* others = staged + (kThreads - 1 - thread) * kEach;
  const float4 four = *reinterpret_cast<const float4*>(others + (mistake == Mistake::misaligned));
  const float own[kEach] = {four.x, four.y, four.z, four.w};
  float total = 0;
  for (int i = 0; i < (mistake == Mistake::array_bounds ? min(n, kEach + 1) : kEach); ++i) total += own[i];
  if (mistake != Mistake::missing_lane || lane != 13)
    for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_down_sync(~0U, total, lanes);
  if (lane == 0) sums[warp + (mistake == Mistake::shared_bounds)] = total;
  if (mistake == Mistake::no_warp_barrier)
    total = __shfl_sync(~0U, total, 0);
  else
    __syncwarp();
  if (lane == 1) sums[warp] *= 2;
  __syncthreads();
  if (thread < kWarps) {
    total = sums[thread];
    for (int lanes = 1; lanes < kWarps; lanes *= 2) total += __shfl_xor_sync((1U << kWarps) - 1, total, lanes);
    if (thread == 0) y[blockIdx.x] = total / 2;
  }
}

struct Example {
  void (*kernel)(const float*, float*, int);
  Mistake mistake;
  const char* name;
};
#define TRANSPOSE(mistake) {transpose<Mistake::mistake>, Mistake::mistake, "transpose " #mistake}
#define SUM(mistake) {sum<Mistake::mistake>, Mistake::mistake, "sum " #mistake}
constexpr Example examples[] = {
    TRANSPOSE(none),
    TRANSPOSE(warp_barrier),
    TRANSPOSE(no_barrier),
    TRANSPOSE(no_second_barrier),
    TRANSPOSE(unwritten),
    TRANSPOSE(global_bounds),
    TRANSPOSE(write_input),
    TRANSPOSE(exited),
    TRANSPOSE(other_block),
    TRANSPOSE(other_barrier),
    SUM(none),
    SUM(shared_bounds),
    SUM(array_bounds),
    SUM(missing_lane),
    SUM(no_warp_barrier),
    SUM(no_wait),
    SUM(misaligned),
    SUM(no_barrier_after_wait),
    SUM(too_much_shared),
};

}  // namespace examples

// Runs an example. For transpose, x and y are [n, n]; for sum, x is [n] and y is [blocks]. Returns the error, null if
// there is none.
extern "C" const char* simt_example(const char* name, const float* x, float* y, int n, int64_t seed) try {
  using namespace examples;
  simt::begin(static_cast<uint64_t>(seed));
  for (const Example& example : examples::examples) {
    if (std::string(example.name) != name) continue;
    const bool square = std::string(name).starts_with("transpose");
    const int blocks = square ? n / kTile : (n + kThreads * kEach - 1) / (kThreads * kEach);
    const size_t bytes = sizeof(float) * n * (square ? n : 1);
    const auto* in = static_cast<const float*>(simt::add_buffer("x", simt::Access::input, x, bytes));
    auto* out = static_cast<float*>(
        simt::add_buffer("y", simt::Access::output, nullptr, square ? bytes : sizeof(float) * blocks));
    size_t shared = sizeof(float) * (square ? 0 : kThreads * kEach + kWarps);
    if (example.mistake == Mistake::too_much_shared) shared = 48 * 1024 + 16;
    launch(example.kernel, dim3(blocks), square ? dim3(kTile, kRows) : dim3(kThreads), shared, nullptr, in, out, n);
    simt::read_buffer(out, y);
    return simt::error();
  }
  simt::fail("no example is called %s", name);
  return simt::error();
} catch (const std::exception&) {
  return simt::error();
}
