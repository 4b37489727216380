// wgrad: dv[v] = sum over n, p (gy[n, o, p] * x[n, c, p + shift]).
//
// wgrad_tiled   holds gy of a warp's targets in registers and stages x as sparse_conv does; a tap is a dot product, to
//               which each lane contributes a sum, and one lane adds these sums
// add_tiles     adds the parts of the tiles, in order, and writes them in the order of the support
// wgrad_small   for small maps: one tap per thread
#include "conv.h"
#include "launch.h"
#include "steps.h"
#include "window.h"

namespace sparsegan::cuda {
namespace {

// Reads N neighbouring columns of a row, zeros after its end.
template <class T, int N>
__device__ __forceinline__ void read(const Tiling& t, const T* row, int column, float (&numbers)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    float four[4] = {};
    if (t.y.fours) {
      if (column + i < t.y.width) load_four(row + column + i, four);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (column + i + j < t.y.width) four[j] = to_float(row[column + i + j]);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) numbers[i + j] = four[j];
  }
}

// Reads a thread's strips of gy: the elements that sparse_conv would write in y.
template <class T, int Strip>
__device__ __forceinline__ void read_strips(const Tiling& t, const Targets<slots_of(Strip)>& targets,
                                            const Origin& origin, const Lane& lane, const T* gy,
                                            float (&strips)[slots_of(Strip)][Strip]) {
  Rows rows = Rows::of<Strip>(t, targets, origin, lane);
#pragma unroll
  for (int slot = 0; slot < slots_of(Strip); ++slot, rows.advance(t)) {
    if (t.phases_w == 2 && slot % 2 == 1) continue;  // was read with the slot before
#pragma unroll
    for (int i = 0; i < Strip; ++i) strips[slot][i] = strips[slot | 1][i] = 0;
    if (!rows.there(t)) continue;
    const T* const row = gy + rows.offset(t);
    const int column = rows.column();
    if (t.phases_w == 1) {
      read(t, row, column, strips[slot]);
    } else if (t.phases_w == 2) {  // the two column phases are neighbouring slots: read whole rows
      float both[2 * Strip];
      read(t, row, column, both);
#pragma unroll
      for (int i = 0; i < Strip; ++i) strips[slot][i] = both[2 * i], strips[slot | 1][i] = both[2 * i + 1];
    } else {
#pragma unroll
      for (int i = 0; i < Strip; ++i) {
        if (column + i * t.phases_w < t.y.width) strips[slot][i] = to_float(row[column + i * t.phases_w]);
      }
    }
  }
}

// Grid: x = blocks of targets, y = parts of the tiles, z = slices of the slabs. `parts` is [parts, taps].
template <class T, int Strip, int ColumnStep>
__global__ __launch_bounds__(kThreads, blocks_of(Strip)) void wgrad_tiled(const Tiling t, const T* __restrict__ gy,
                                                                          const T* __restrict__ x,
                                                                          float* __restrict__ parts) {
  const int warp = uniform(threadIdx.x / 32);
  const int me = threadIdx.x % 32;
  const auto targets = Targets<slots_of(Strip)>::of(t, blockIdx.x, warp);
  const Lane lane = Lane::of(t, me);
  const int slabs_begin = static_cast<int>(static_cast<int64_t>(t.slabs) * blockIdx.z / t.slices);
  const int slabs_end = static_cast<int>(static_cast<int64_t>(t.slabs) * (blockIdx.z + 1) / t.slices);
  const int first_tile = static_cast<int>(static_cast<int64_t>(t.tiles) * blockIdx.y / t.parts);
  const int tiles_end = static_cast<int>(static_cast<int64_t>(t.tiles) * (blockIdx.y + 1) / t.parts);
  float* const part = parts + static_cast<int64_t>(blockIdx.y) * t.plan.taps;

  Step* const slices = reinterpret_cast<Step*>(dynamic_shared());
  Step* const slice = slices + warp * kMaxSteps;
  float* const all_dots = reinterpret_cast<float*>(slices + kWarps * kMaxSteps);
  float* const dots = all_dots + warp * kRound * kPitch;
  T* staged = reinterpret_cast<T*>(all_dots + kWarps * kRound * kPitch);
  T* spare = staged + t.stage_slabs * t.slab_size;

  float strips[slots_of(Strip)][Strip];
  const int strip = lane.offset(t);
  int tile = first_tile, slab = slabs_begin, tap = 0;
  Origin origin = Origin::of<Strip>(t, tile);
  stage<T, Strip, ColumnStep>(t, x, staged, origin, targets.group, slab, min(t.stage_slabs, slabs_end - slab));
  while (tile < tiles_end) {
    const int end_slab = min(slab + t.stage_slabs, slabs_end);
    const bool turn = end_slab == slabs_end;
    const int next_tile = turn ? tile + 1 : tile, next_slab = turn ? slabs_begin : end_slab;
    const Origin next_origin = Origin::of<Strip>(t, next_tile);
    wait_copies();
    __syncthreads();  // this stage is complete, and no thread reads the other any more
    if (next_tile < tiles_end) {
      stage<T, Strip, ColumnStep>(t, x, spare, next_origin, targets.group, next_slab,
                                  min(t.stage_slabs, slabs_end - next_slab));
    }
    if (slab == slabs_begin) {
      read_strips<T, Strip>(t, targets, origin, lane, gy, strips);
      tap = targets.tap(t, slab);
    }
    const int end = targets.tap(t, end_slab);
    Segment<T, Strip, ColumnStep> segment;
    for (; tap < end; tap += kRound) {
      const unsigned code = tap + me < end ? t.plan.codes[tap + me] : 0;
      const bool kept = tap + me < end && targets.keep(code);
      const unsigned keeps = write_steps<Strip, ColumnStep>(t, sizeof(T), shared_address(slice), code, 0, kept, slab);
      __syncwarp();
      Cursor cursor;
      cursor.start(t, slice);
      Dot dot = shared_address(dots + me);
      while (run_dots<Strip, ColumnStep>(cursor, segment.columns, strips, dot)) {
        segment.load(t, staged + strip, cursor.row());
      }
      __syncwarp();
      if (kept) {
        const float* const of_tap = dots + __popc(keeps & ((1u << me) - 1)) * kPitch;
        float sum = 0;
        for (int i = 0; i < 32; ++i) sum += of_tap[i];
        part[tap + me] = tile == first_tile ? sum : part[tap + me] + sum;
      }
      __syncwarp();
    }
    tap = end;
    T* const used = staged;
    staged = spare, spare = used;
    tile = next_tile, slab = next_slab, origin = next_origin;
  }
}

template <class T>
__global__ __launch_bounds__(256) void add_tiles(const float* __restrict__ parts, int count, const Plan plan,
                                                 T* __restrict__ dv) {
  const int tap = blockIdx.x * 256 + threadIdx.x;
  if (tap >= plan.taps) return;
  float sum = 0;
  for (int p = 0; p < count; ++p) sum += parts[static_cast<int64_t>(p) * plan.taps + tap];
  dv[min(static_cast<unsigned>(plan.value_index[tap]), plan.taps - 1u)] = from_float<T>(sum);
}

// One thread per kept weight, in the order of the support. `coarse` and `fine` are the tensors on the two grids.
template <class T>
__global__ __launch_bounds__(kThreads) void wgrad_small(const Tiling t, const int* __restrict__ support,
                                                        const T* __restrict__ coarse, const Planes coarse_planes,
                                                        const T* __restrict__ fine, const Planes fine_planes,
                                                        T* __restrict__ dv) {
  const int tap = blockIdx.x * kThreads + threadIdx.x;
  if (tap >= t.plan.taps) return;
  const Unit<unsigned> unit = t.units(support[tap]);
  const int coarse_channel = min(unit.coarse, coarse_planes.channels - 1u);  // the support is not trusted
  const int fine_channel = min(unit.fine, fine_planes.channels - 1u);
  const int first_row = static_cast<int>(unit.row) * t.dilation_h - t.padding_h;
  const int first_column = static_cast<int>(unit.column) * t.dilation_w - t.padding_w;
  float sum = 0;
  for (int n = 0; n < t.images; ++n) {
    const T* from =
        coarse + (static_cast<int64_t>(n) * coarse_planes.channels + coarse_channel) * coarse_planes.plane();
    const T* plane = fine + (static_cast<int64_t>(n) * fine_planes.channels + fine_channel) * fine_planes.plane();
    float of_image = 0;
    for (int row = 0; row < coarse_planes.height; ++row, from += coarse_planes.width) {
      const unsigned fine_row = row * t.stride_h + first_row;
      if (fine_row >= static_cast<unsigned>(fine_planes.height)) continue;
      const T* const fine_at = plane + static_cast<int64_t>(fine_row) * fine_planes.width;
      for (int column = 0; column < coarse_planes.width; ++column) {
        const unsigned fine_column = column * t.stride_w + first_column;
        if (fine_column >= static_cast<unsigned>(fine_planes.width)) continue;
        of_image = fmaf(to_float(from[column]), to_float(fine_at[fine_column]), of_image);
      }
    }
    sum += of_image;
  }
  dv[tap] = from_float<T>(sum);
}

template <class T>
void run(const ConvCall& c, const void* gy, const void* x, void* dv, float* workspace, cudaStream_t stream) {
  Tiling t = wgrad_tiling(c);
  const auto fours = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % (4 * sizeof(T)) == 0; };
  t.x.fours &= fours(x);
  t.y.fours &= fours(gy);
  const auto* const g = static_cast<const T*>(gy);
  const auto* const from = static_cast<const T*>(x);
  auto* const to = static_cast<T*>(dv);
  if (t.small) {
    const unsigned blocks = (t.plan.taps - 1u) / kThreads + 1;
    launch(wgrad_small<T>, blocks, kThreads, 0, stream, t, c.support, c.adjoint ? from : g, c.adjoint ? t.x : t.y,
           c.adjoint ? g : from, c.adjoint ? t.y : t.x, to);
    return;
  }
  const auto kernel = t.strip == 16  ? wgrad_tiled<T, 16, 1>
                      : t.strip == 8 ? (t.column_step == 1 ? wgrad_tiled<T, 8, 1> : wgrad_tiled<T, 8, 2>)
                                     : (t.column_step == 1 ? wgrad_tiled<T, 4, 1> : wgrad_tiled<T, 4, 2>);
  const size_t shared = kWarps * (kMaxSteps * sizeof(Step) + kRound * kPitch * sizeof(float)) +
                        size_t{2} * t.stage_slabs * t.slab_size * sizeof(T);
  launch(kernel, dim3(t.groups * t.target_blocks, t.parts, t.slices), kThreads, shared, stream, t, g, from, workspace);
  const unsigned blocks = (t.plan.taps - 1u) / 256 + 1;
  launch(add_tiles<T>, blocks, 256, 0, stream, static_cast<const float*>(workspace), t.parts, t.plan, to);
}

}  // namespace

void wgrad(const ConvCall& c, const void* gy, const void* x, void* dv, float* workspace, cudaStream_t stream) {
  if (c.taps == 0) return;
  with_type(c.dtype, [&](auto zero) { run<decltype(zero)>(c, gy, x, dv, workspace, stream); });
}

}  // namespace sparsegan::cuda
