// Kernels for the executor's own tests: correct ones, and the same with a mistake that it must report.
#include <cuda_runtime.h>

#include <string>
#include <vector>

namespace examples {

enum class Mistake {
  none,
  no_barrier,         // none between writing a tile and reading it
  no_second_barrier,  // none between reading a tile and writing it again
  shared_bounds,      // one element past the end of shared memory
  global_bounds,      // one element past the end of a buffer
  array_bounds,       // one element past the end of a thread's own array
  write_input,
  unwritten,              // a shared element that nobody writes
  other_block,            // two blocks write the same element
  exited,                 // a thread leaves before a barrier
  other_barrier,          // threads at two barriers
  missing_lane,           // a lane of the mask is not at the shuffle
  no_warp_barrier,        // a shuffle orders no memory
  no_wait,                // shared memory read before its copy has been waited for
  no_barrier_after_wait,  // the wait is the copying thread's only
  misaligned,             // four floats from an odd address
  too_much_shared,        // more than a launch gets unasked
};

constexpr int tile = 32, rows = 8;

// y = x transposed, `tiles` tiles in each direction.
template <Mistake mistake>
__global__ void __launch_bounds__(tile* rows) transpose(const float* x, float* y, int n) {
  __shared__ float staged[tile][tile + 1];
  const int column = threadIdx.x, first = threadIdx.y;
  for (int tile_row = 0; tile_row < n; tile_row += tile) {
    for (int r = first; r < tile; r += rows)
      if (mistake != Mistake::unwritten || r != 5 || column != 7)
        staged[r][column] = x[(tile_row + r) * n + blockIdx.x * tile + column];
    if (mistake == Mistake::exited && first == 3 && column == 9) return;
    if (mistake == Mistake::other_barrier && first == 0) {
      __syncthreads();
    } else if (mistake != Mistake::no_barrier) {
      __syncthreads();
    }
    const int past = mistake == Mistake::global_bounds && tile_row + tile == n ? 1 : 0;
    const unsigned block = mistake == Mistake::other_block ? 0 : blockIdx.x;
    for (int r = first; r < tile; r += rows) y[(block * tile + r) * n + tile_row + column + past] = staged[column][r];
    if (mistake != Mistake::no_second_barrier) __syncthreads();
    if (mistake == Mistake::write_input) const_cast<float*>(x)[0] = 0;
  }
}

// y[block] = the sum of the block's part of x, staged by cp.async, summed by shuffles.
template <Mistake mistake>
__global__ void __launch_bounds__(128) sum(const float* x, float* y, int n) {
  float* staged = static_cast<float*>(simt::dynamic_shared());  // [128 * 4]
  float* warps = staged + 128 * 4;                              // [4]
  const int thread = threadIdx.x, lane = thread % 32;
  const int at = (blockIdx.x * 128 + thread) * 4;
  const int valid = max(0, min(16, (n - at) * 4));
  simt::copy_async(staged + thread * 4, x + (valid > 0 ? at : 0), 16, valid);
  simt::commit_group();
  simt::commit_group();  // an empty one, for wait_group to leave out
  simt::wait_group(mistake == Mistake::no_wait ? 2 : 1);
  if (mistake != Mistake::no_barrier_after_wait) __syncthreads();
  float own[4];
  const float4 four = *reinterpret_cast<const float4*>(staged + (127 - thread) * 4 + (mistake == Mistake::misaligned));
  own[0] = four.x, own[1] = four.y, own[2] = four.z, own[3] = four.w;
  float total = 0;
  for (int i = 0; i < 4 + (mistake == Mistake::array_bounds && n > 0); ++i) total += own[i];
  if (mistake != Mistake::missing_lane || lane != 13)
    for (int step = 16; step > 0; step /= 2) total += __shfl_down_sync(~0U, total, step);
  if (lane == 0) warps[thread / 32 + (mistake == Mistake::shared_bounds)] = total;
  // Within a warp: lane 1 takes from lane 0.
  if (mistake == Mistake::no_warp_barrier)
    __shfl_sync(~0U, total, 0);
  else
    __syncwarp();
  if (lane == 1) warps[thread / 32] += 0;
  __syncthreads();
  if (thread == 0) y[blockIdx.x] = warps[0] + warps[1] + warps[2] + warps[3];
}

template <Mistake mistake>
void run_transpose(const float* x, float* y, int n) {
  simt::launch(transpose<mistake>, dim3(n / tile), dim3(tile, rows), 0, x, y, n);
}

template <Mistake mistake>
void run_sum(const float* x, float* y, int n) {
  const size_t shared = mistake == Mistake::too_much_shared ? 48 * 1024 + 4 : (128 * 4 + 4) * sizeof(float);
  simt::launch(sum<mistake>, dim3((n + 511) / 512), dim3(128), shared, x, y, n);
}

struct Example {
  const char* name;
  void (*run)(const float*, float*, int);
};
constexpr Example table[] = {
    {"transpose", run_transpose<Mistake::none>},
    {"sum", run_sum<Mistake::none>},
    {"no barrier", run_transpose<Mistake::no_barrier>},
    {"no second barrier", run_transpose<Mistake::no_second_barrier>},
    {"global bounds", run_transpose<Mistake::global_bounds>},
    {"write input", run_transpose<Mistake::write_input>},
    {"unwritten", run_transpose<Mistake::unwritten>},
    {"other block", run_transpose<Mistake::other_block>},
    {"exited", run_transpose<Mistake::exited>},
    {"other barrier", run_transpose<Mistake::other_barrier>},
    {"shared bounds", run_sum<Mistake::shared_bounds>},
    {"array bounds", run_sum<Mistake::array_bounds>},
    {"missing lane", run_sum<Mistake::missing_lane>},
    {"no warp barrier", run_sum<Mistake::no_warp_barrier>},
    {"no wait", run_sum<Mistake::no_wait>},
    {"no barrier after wait", run_sum<Mistake::no_barrier_after_wait>},
    {"misaligned", run_sum<Mistake::misaligned>},
    {"too much shared", run_sum<Mistake::too_much_shared>},
};

}  // namespace examples

// Runs an example on `count` numbers (a square for the transpose): null, or the error.
extern "C" const char* simt_example(const char* name, const float* x, float* y, int count, int results, uint64_t seed) {
  simt::begin(seed);
  const auto* in = static_cast<const float*>(simt::add_buffer("x", simt::Access::input, x, count * sizeof(float)));
  auto* out = static_cast<float*>(simt::add_buffer("y", simt::Access::output, nullptr, results * sizeof(float)));
  const bool square = count == results;
  int n = count;
  if (square)
    for (n = 1; n * n < count; ++n) {
    }
  for (const examples::Example& example : examples::table)
    if (std::string(example.name) == name) {
      example.run(in, out, n);
      simt::read_buffer(out, y);
      return simt::error();
    }
  simt::fail("no example %s", name);
  return simt::error();
}
