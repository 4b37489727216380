// sparse_conv: y[n, o, p] = f(bias[o] + sum over taps (v * x[n, c, p + shift])).
//
// sparse_conv_tiled    a warp's taps run on row segments in registers; x is staged in shared memory, double-buffered
// sparse_conv_small    for small maps: lanes hold pixels and taps, each weight is read once
// add_parts            adds the parts of calls that have too few blocks to fill the device
#include "conv.h"
#include "launch.h"
#include "steps.h"
#include "window.h"

namespace sparsegan::cuda {
namespace {

// The last step of a sum: the bias, then the leaky ReLU.
template <class T>
struct Finish {
  const T* bias;  // null: zeros
  float negative_slope;

  __device__ float initial(int channel) const { return bias == nullptr ? 0 : to_float(bias[channel]); }
  __device__ float operator()(float sum, float bias_of_channel) const {
    sum += bias_of_channel;
    if (sum < 0) sum = negative_slope == 0 ? 0 : sum * negative_slope;  // 0 for minus infinity too
    return sum;
  }
};

// The taps of a warp's bundle, in order and in rounds of at most 32. The steps of a round are in the warp's slice of
// shared memory. The codes and the indices of the values are read one round ahead. Nothing else is, because the sums
// leave few registers.
template <class T, int Strip, int ColumnStep>
class Taps {
 public:
  // The taps of the bundle that the block runs are `begin` to `end`.
  __device__ Taps(const Tiling& tiling, const Targets<slots_of(Strip)>& targets, const T* values, Step* slice,
                  int begin, int end)
      : t_(tiling), targets_(targets), values_(values), slice_(slice), end_(end), tap_(begin) {
    read();
  }

  // Runs the taps before `stage_end`. `strip`: the start of the lane's strip in the stage. `slab`: its first slab.
  __device__ __forceinline__ void run(const T* strip, int slab, int stage_end, float (&sums)[slots_of(Strip)][Strip]) {
    while (tap_ < stage_end) {
      const bool there = tap_ + static_cast<int>(threadIdx.x % 32) < stage_end;
      const float value = there ? to_float(values_[min(static_cast<unsigned>(index_), t_.plan.taps - 1u)]) : 0;
      __syncwarp();
      write_steps<Strip, ColumnStep>(t_, sizeof(T), shared_address(slice_), code_, value, there && targets_.keep(code_),
                                     slab);
      __syncwarp();
      tap_ = min(tap_ + kRound, stage_end);
      read();

      Cursor cursor;
      cursor.start(t_, slice_);
      Segment<T, Strip, ColumnStep> segment;
      while (run_sums<Strip, ColumnStep>(cursor, segment.columns, sums)) segment.load(t_, strip, cursor.row());
    }
  }

 private:
  // Reads the next round, whose taps start at tap_.
  __device__ __forceinline__ void read() {
    const int tap = tap_ + static_cast<int>(threadIdx.x % 32);
    code_ = tap < end_ ? t_.plan.codes[tap] : 0;
    index_ = tap < end_ ? t_.plan.value_index[tap] : 0;
  }

  const Tiling& t_;
  const Targets<slots_of(Strip)>& targets_;
  const T* values_;
  Step* slice_;
  int end_, tap_;
  unsigned code_;
  int index_;
};

// The destination of sums: `part`, in float32, if it is not null; otherwise `y`.
template <class T>
struct Sink {
  T* y;
  float* part;

  __device__ __forceinline__ void store(int64_t at, float a) const {
    if (part == nullptr) {
      y[at] = from_float<T>(a);
    } else {
      part[at] = a;
    }
  }
  __device__ __forceinline__ void store_four(int64_t at, float a, float b, float c, float d) const {
    if (part == nullptr) {
      cuda::store_four(y + at, a, b, c, d);
    } else {
      cuda::store_four(part + at, a, b, c, d);
    }
  }
};
template <>
struct Sink<float> {  // both have the same type, so one pointer serves both
  float* y;

  __device__ Sink(float* y, float* part) : y(part == nullptr ? y : part) {}
  __device__ __forceinline__ void store(int64_t at, float a) const { y[at] = a; }
  __device__ __forceinline__ void store_four(int64_t at, float a, float b, float c, float d) const {
    cuda::store_four(y + at, a, b, c, d);
  }
};

// Writes `count` neighbouring columns of the row that starts at offset `row`, up to the end of the row. `number(i)` is
// the number for column i. Each four is computed where it is written, because the sums leave few registers.
template <int count, class T, class Number>
__device__ __forceinline__ void write(const Tiling& t, const Sink<T>& sink, int64_t row, int column,
                                      const Number& number) {
#pragma unroll
  for (int i = 0; i < count; i += 4) {
    if (t.y.fours) {
      if (column + i < t.y.width) {
        sink.store_four(row + column + i, number(i), number(i + 1), number(i + 2), number(i + 3));
      }
    } else {
#pragma unroll
      for (int j = i; j < i + 4; ++j) {
        if (column + j < t.y.width) sink.store(row + column + j, number(j));
      }
    }
  }
}

// Finishes a thread's sums and writes them.
template <class T, int Strip>
__device__ __forceinline__ void write_strips(const Tiling& t, const Targets<slots_of(Strip)>& targets,
                                             const Origin& origin, const Lane& lane,
                                             const float (&sums)[slots_of(Strip)][Strip], const Finish<T>& finish,
                                             const Sink<T>& sink) {
  Rows rows = Rows::of<Strip>(t, targets, origin, lane);
#pragma unroll
  for (int slot = 0; slot < slots_of(Strip); ++slot, rows.advance(t)) {
    if (!rows.there(t)) continue;
    const int64_t row = rows.offset(t);
    const int column = rows.column();
    const float bias = finish.initial(rows.channel());
    if (t.phases_w == 2) {  // the two column phases are neighbouring slots: write whole rows
      if (slot % 2 == 1) continue;
      write<2 * Strip>(t, sink, row, column, [&](int i) { return finish(sums[slot | i % 2][i / 2], bias); });
    } else if (t.phases_w == 1) {
      write<Strip>(t, sink, row, column, [&](int i) { return finish(sums[slot][i], bias); });
    } else {
#pragma unroll
      for (int i = 0; i < Strip; ++i) {
        if (column + i * t.phases_w < t.y.width) {
          sink.store(row + column + i * t.phases_w, finish(sums[slot][i], bias));
        }
      }
    }
  }
}

// Grid: x = tiles x blocks of targets, y = parts of the slabs. If there are several parts, their sums go to `parts`.
template <class T, int Strip, int ColumnStep>
__global__ __launch_bounds__(kThreads, blocks_of(Strip)) void sparse_conv_tiled(const Tiling t, const T* __restrict__ x,
                                                                                const T* __restrict__ values,
                                                                                const Finish<T> finish,
                                                                                T* __restrict__ y,
                                                                                float* __restrict__ parts) {
  const int warp = uniform(threadIdx.x / 32);
  const int blocks = t.groups * t.target_blocks, tile = uniform(blockIdx.x / blocks);
  const auto targets = Targets<slots_of(Strip)>::of(t, blockIdx.x - tile * blocks, warp);
  const Origin origin = Origin::of<Strip>(t, tile);
  const Lane lane = Lane::of(t, threadIdx.x % 32);
  const int slabs_begin = static_cast<int>(static_cast<int64_t>(t.slabs) * blockIdx.y / t.parts);
  const int slabs_end = static_cast<int>(static_cast<int64_t>(t.slabs) * (blockIdx.y + 1) / t.parts);

  Step* const slices = reinterpret_cast<Step*>(dynamic_shared());
  T* const staged = reinterpret_cast<T*>(slices + kWarps * kMaxSteps);
  const int first = targets.tap(t, slabs_begin);
  Taps<T, Strip, ColumnStep> taps(t, targets, values, slices + warp * kMaxSteps, first,
                                  max(first, targets.tap(t, slabs_end)));

  float sums[slots_of(Strip)][Strip] = {};
  const int strip = lane.offset(t);
  const auto copy = [&](int from, int half) {
    stage<T, Strip, ColumnStep>(t, x, staged + half, origin, targets.group, from, min(t.stage_slabs, slabs_end - from));
  };
  const int half_size = t.stage_slabs * t.slab_size;
  copy(slabs_begin, 0);
  for (int slab = slabs_begin, half = 0; slab < slabs_end; slab += t.stage_slabs, half = half_size - half) {
    wait_copies();
    __syncthreads();  // this stage is complete, and no thread reads the other any more
    const int next = min(slab + t.stage_slabs, slabs_end);
    if (next < slabs_end) copy(next, half_size - half);
    taps.run(staged + half + strip, slab, targets.tap(t, next), sums);
  }

  const int64_t size = static_cast<int64_t>(t.images) * t.y.channels * t.y.plane();
  const bool whole = t.parts == 1;
  write_strips<T, Strip>(t, targets, origin, lane, sums,
                         Finish<T>{whole ? finish.bias : nullptr, whole ? finish.negative_slope : 1},
                         Sink<T>{y, whole ? nullptr : parts + blockIdx.y * size});
}

template <class T>
__global__ __launch_bounds__(256) void add_parts(const float* __restrict__ parts, int count, int64_t size,
                                                 int64_t plane, int channels, const Finish<T> finish,
                                                 T* __restrict__ y) {
  for (int64_t i = blockIdx.x * int64_t{256} + threadIdx.x; i < size; i += gridDim.x * int64_t{256}) {
    float sum = 0;
    for (int p = 0; p < count; ++p) sum += parts[p * size + i];
    y[i] = from_float<T>(finish(sum, finish.initial(static_cast<int>(i / plane % channels))));
  }
}

// A tap in the form that sparse_conv_small runs. Each lane of a warp reads one tap, and all lanes use it.
struct alignas(16) Read {
  int row, column, offset;  // in x, relative to the place of the target's pixel
  float value;
};

__device__ __forceinline__ Read read_unit(const Tiling& t, bool adjoint, unsigned number, float value) {
  const Unit<unsigned> unit = t.units(number);
  int row = static_cast<int>(unit.row) * t.dilation_h - t.padding_h;
  int column = static_cast<int>(unit.column) * t.dilation_w - t.padding_w;
  if (adjoint) {  // a phase's offsets are the phase plus multiples of the stride
    row = -((row - (row % t.stride_h + t.stride_h) % t.stride_h) / t.stride_h);
    column = -((column - (column % t.stride_w + t.stride_w) % t.stride_w) / t.stride_w);
  }
  const unsigned channel = min(adjoint ? unit.coarse : unit.fine, t.x.channels - 1u);  // plans are not trusted
  return {row, column, static_cast<int>(channel * t.x.plane()) + row * t.x.width + column, value};
}

// Grid: x = targets, kWarps / ways per block; y = chunks of the pixels (images x rows x columns).
template <class T, int Pixels>
__global__ __launch_bounds__(kThreads, 6) void sparse_conv_small(const Tiling t, const bool adjoint,
                                                                 const T* __restrict__ x, const T* __restrict__ values,
                                                                 const Finish<T> finish, T* __restrict__ y) {
  constexpr int kNowhere = -(1 << 30);
  __shared__ Read slices[kThreads];
  __shared__ float sums_of_ways[kWarps][Pixels][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int target = blockIdx.x * (kWarps / t.ways) + warp / t.ways, way = warp % t.ways;
  const int targets = t.groups * t.group_targets, phases = t.phases_h * t.phases_w;
  const int pixel_lanes = 1 << t.log_pixels, tap_lane = lane >> t.log_pixels;
  const int channel = target / phases, phase = target - channel * phases, phase_h = phase / t.phases_w;

  int rows[Pixels], columns[Pixels];
  const T* pixels[Pixels];
  int64_t outputs[Pixels];
#pragma unroll
  for (int m = 0; m < Pixels; ++m) {
    const int pixel = ((blockIdx.y * Pixels + m) << t.log_pixels) + lane % pixel_lanes;
    const int image = pixel / (t.rows * t.columns), in_image = pixel - image * (t.rows * t.columns);
    const int row = in_image / t.columns, column = in_image - row * t.columns;
    const int y_row = row * t.phases_h + phase_h, y_column = column * t.phases_w + phase - phase_h * t.phases_w;
    const bool there = target < targets && image < t.images && y_row < t.y.height && y_column < t.y.width;
    rows[m] = there ? row * (adjoint ? 1 : t.stride_h) : kNowhere;
    columns[m] = column * (adjoint ? 1 : t.stride_w);
    pixels[m] = x + static_cast<int64_t>(image) * t.x.channels * t.x.plane() +
                static_cast<int64_t>(rows[m]) * t.x.width + columns[m];
    outputs[m] =
        there ? ((static_cast<int64_t>(image) * t.y.channels + channel) * t.y.height + y_row) * t.y.width + y_column
              : -1;
  }

  int begin = 0, end = 0;
  if (target < targets) {
    begin = min(max(t.plan.starts[target], 0), t.plan.taps);
    end = min(max(t.plan.starts[target + 1], begin), t.plan.taps);
    const int each = (end - begin + t.ways - 1) / t.ways;
    begin = min(begin + way * each, end);
    end = min(begin + each, end);
  }
  float sums[Pixels] = {};
  Read* const slice = slices + warp * 32;
  const auto read = [&](int from) -> Read {
    const int tap = from + lane;
    if (tap >= end) return {kNowhere, 0, 0, 0};
    const unsigned place = t.plan.places == nullptr ? tap : t.plan.places[tap];
    return read_unit(t, adjoint, t.plan.units[tap], to_float(values[min(place, t.plan.taps - 1u)]));
  };
  Read next = read(begin);
  for (int from = begin; from < end; from += 32) {
    __syncwarp();
    slice[lane] = next;
    __syncwarp();
    next = read(from + 32);
    const int count = min(32, end - from);
    for (int k = tap_lane; k < count; k += 32 >> t.log_pixels) {
      const Read tap = slice[k];
#pragma unroll
      for (int m = 0; m < Pixels; ++m) {
        const bool there = static_cast<unsigned>(rows[m] + tap.row) < static_cast<unsigned>(t.x.height) &&
                           static_cast<unsigned>(columns[m] + tap.column) < static_cast<unsigned>(t.x.width);
        sums[m] = fmaf(tap.value, there ? to_float(pixels[m][tap.offset]) : 0, sums[m]);
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int m = 0; m < Pixels; ++m) {
    for (int lanes = pixel_lanes; lanes < 32; lanes *= 2) sums[m] += __shfl_xor_sync(~0u, sums[m], lanes);
  }
  if (t.ways > 1) {
#pragma unroll
    for (int m = 0; m < Pixels; ++m) sums_of_ways[warp][m][lane] = sums[m];
    __syncthreads();
    if (way > 0) return;
#pragma unroll
    for (int m = 0; m < Pixels; ++m) {
      for (int w = 1; w < t.ways; ++w) sums[m] += sums_of_ways[warp + w][m][lane];
    }
  }
  if (tap_lane > 0) return;
#pragma unroll
  for (int m = 0; m < Pixels; ++m) {
    if (outputs[m] >= 0) y[outputs[m]] = from_float<T>(finish(sums[m], finish.initial(channel)));
  }
}

template <class T>
void run(const ConvCall& c, const void* x, const void* values, const void* bias, float negative_slope, void* y,
         float* workspace, cudaStream_t stream) {
  Tiling t = sparse_conv_tiling(c);
  const auto fours = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % (4 * sizeof(T)) == 0; };
  t.x.fours &= fours(x);
  t.y.fours &= fours(y);
  const Finish<T> finish{static_cast<const T*>(bias), negative_slope};
  const auto* const from = static_cast<const T*>(x);
  const auto* const v = static_cast<const T*>(values);
  auto* const to = static_cast<T*>(y);
  if (t.small) {
    const int targets = t.groups * t.group_targets, per_block = kWarps / t.ways;
    const int pixels = t.images * t.rows * t.columns, chunk = t.lane_pixels << t.log_pixels;
    const dim3 grid((targets + per_block - 1) / per_block, (pixels + chunk - 1) / chunk);
    const auto kernel = t.lane_pixels == 1   ? sparse_conv_small<T, 1>
                        : t.lane_pixels == 2 ? sparse_conv_small<T, 2>
                                             : sparse_conv_small<T, 4>;
    launch(kernel, grid, kThreads, 0, stream, t, c.adjoint, from, v, finish, to);
    return;
  }
  const auto kernel = t.strip == 16  ? sparse_conv_tiled<T, 16, 1>
                      : t.strip == 8 ? (t.column_step == 1 ? sparse_conv_tiled<T, 8, 1> : sparse_conv_tiled<T, 8, 2>)
                                     : (t.column_step == 1 ? sparse_conv_tiled<T, 4, 1> : sparse_conv_tiled<T, 4, 2>);
  const size_t shared = kWarps * kMaxSteps * sizeof(Step) + size_t{2} * t.stage_slabs * t.slab_size * sizeof(T);
  launch(kernel, dim3(t.tiles * t.groups * t.target_blocks, t.parts), kThreads, shared, stream, t, from, v, finish, to,
         workspace);
  if (t.parts == 1) return;
  const int64_t size = int64_t{t.images} * t.y.channels * t.y.plane();
  const int64_t blocks = min((size + 255) / 256, 8 * c.multiprocessors);
  launch(add_parts<T>, dim3(static_cast<unsigned>(blocks)), 256, 0, stream, static_cast<const float*>(workspace),
         t.parts, size, t.y.plane(), t.y.channels, finish, to);
}

}  // namespace

void sparse_conv(const ConvCall& c, const void* x, const void* values, const void* bias, float negative_slope, void* y,
                 float* workspace, cudaStream_t stream) {
  if (c.images == 0) return;
  with_type(c.dtype, [&](auto zero) { run<decltype(zero)>(c, x, values, bias, negative_slope, y, workspace, stream); });
}

}  // namespace sparsegan::cuda
