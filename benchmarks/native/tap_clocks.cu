// The clocks that a tap takes in the loop of csrc/cuda/steps.h, by the clock of the multiprocessor. This is the cost of
// the jump from tap to tap on which the design of the CUDA kernels rests. benchmarks/gpu_numbers.py builds this file
// with nvcc. tests/test_simt.py runs it on the host.
#include "../../csrc/cuda/launch.h"
#include "../../csrc/cuda/steps.h"

namespace sparsegan::cuda {
namespace {

// Each warp runs the same steps, `repeats` times. Column i of lane l is l + i. `sums` [blocks * kThreads][128 or 64]
// and `clocks` [blocks][kWarps], of all repeats.
template <int Strip, int ColumnStep>
__global__ __launch_bounds__(kThreads, blocks_of(Strip)) void run_taps(const Tiling t, const Step* __restrict__ steps,
                                                                       int count, int repeats,
                                                                       float* __restrict__ all_sums,
                                                                       long long* __restrict__ clocks) {
  Step* const slice = reinterpret_cast<Step*>(dynamic_shared());
  for (int i = threadIdx.x; i < count; i += kThreads) slice[i] = steps[i];
  __syncthreads();
  float columns[24], sums[slots_of(Strip)][Strip] = {};
#pragma unroll
  for (int i = 0; i < 24; ++i) columns[i] = static_cast<float>(threadIdx.x % 32 + i);

  const long long begin = clock64();
#pragma unroll 1
  for (int repeat = 0; repeat < repeats; ++repeat) {
    Cursor cursor;
    cursor.start(t, slice);
    while (run_sums<Strip, ColumnStep>(cursor, columns, sums)) {
    }
  }
  const long long end = clock64();

  if (threadIdx.x % 32 == 0) clocks[blockIdx.x * kWarps + threadIdx.x / 32] = end - begin;
  float* const to = all_sums + (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * slots_of(Strip) * Strip;
#pragma unroll
  for (int slot = 0; slot < slots_of(Strip); ++slot) {
#pragma unroll
    for (int i = 0; i < Strip; ++i) to[slot * Strip + i] = sums[slot][i];
  }
}

}  // namespace
}  // namespace sparsegan::cuda

// Launches `blocks` blocks of four warps on the default stream and does not wait. All pointers are of the device.
// `steps` [count] ends with the step that ends a round, and one that is only read ahead. Returns the error; null: none.
extern "C" const char* tap_clocks(int strip, int column_step, const void* steps, int count, int repeats, int blocks,
                                  float* sums, long long* clocks) try {
  using namespace sparsegan::cuda;
  const auto kernel = strip == 16 && column_step == 1  ? run_taps<16, 1>
                      : strip == 8 && column_step == 1 ? run_taps<8, 1>
                      : strip == 8 && column_step == 2 ? run_taps<8, 2>
                                                       : nullptr;
  if (kernel == nullptr) return "the strip and step must be 16 and 1, 8 and 1, or 8 and 2";
  launch(kernel, dim3(blocks), kThreads, count * sizeof(Step), nullptr, Tiling{}, static_cast<const Step*>(steps),
         count, repeats, sums, clocks);
  return nullptr;
} catch (const std::exception& e) {
  static thread_local std::string error;
  error = e.what();
  return error.c_str();
}
