// A sparse convolution that accumulates in memory, after SparseProp (Nikdan et al., 2023). For every kept weight it
// reads rows of the output, adds multiples of shifted rows of the input, and writes the rows again. The compiler
// vectorises over neighbouring pixels. Only benchmarks/compare_sparse.py calls it, for comparison.

#include <algorithm>
#include <cstdint>

namespace {

struct Shape {
  int64_t channels, height, width;
};

// Applies one kept weight to the planes of one image: y[i, j] += value * x[i * stride + row, j * stride + column] for
// all elements inside x.
template <int64_t kStride>
void accumulate(const float* __restrict x, Shape in, float* __restrict y, Shape out, float value, int64_t row,
                int64_t column) {
  const auto first = [](int64_t shift) { return shift >= 0 ? 0 : (-shift + kStride - 1) / kStride; };
  const auto last = [](int64_t shift, int64_t size, int64_t count) {  // one past the last
    return size <= shift ? 0 : std::min(count, (size - shift - 1) / kStride + 1);
  };
  const int64_t left = first(column), right = last(column, in.width, out.width);
  const int64_t bottom = last(row, in.height, out.height);
  for (int64_t i = first(row); i < bottom; ++i) {
    const float* source = x + (i * kStride + row) * in.width + column;
    float* target = y + i * out.width;
    for (int64_t j = left; j < right; ++j) target[j] += value * source[j * kStride];
  }
}

template <int64_t kStride>
void forward(const float* x, Shape in, const float* bias, const int32_t* rows, const int32_t* taps, const float* values,
             int64_t images, float* y, Shape out) {
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t o = 0; o < out.channels; ++o) {
      float* plane = y + (n * out.channels + o) * out.height * out.width;
      std::fill_n(plane, out.height * out.width, bias[o]);
      for (int64_t t = rows[o]; t < rows[o + 1]; ++t) {
        const float* source = x + (n * in.channels + taps[3 * t]) * in.height * in.width;
        accumulate<kStride>(source, in, plane, out, values[t], taps[3 * t + 1], taps[3 * t + 2]);
      }
    }
  }
}

}  // namespace

// x is NCHW [images, in], y is [images, out]. rows[o] to rows[o + 1] are the kept weights of output channel o. A kept
// weight has three numbers in taps: input channel, row shift, column shift (kernel position minus padding). Returns 0,
// or 1 for a stride other than 1 and 2.
extern "C" __attribute__((visibility("default"))) int through_memory_forward(
    const float* x, int64_t in_channels, int64_t in_height, int64_t in_width, const float* bias, const int32_t* rows,
    const int32_t* taps, const float* values, int64_t stride, int64_t images, float* y, int64_t out_channels,
    int64_t out_height, int64_t out_width) {
  const Shape in{in_channels, in_height, in_width}, out{out_channels, out_height, out_width};
  if (stride == 1) {
    forward<1>(x, in, bias, rows, taps, values, images, y, out);
  } else if (stride == 2) {
    forward<2>(x, in, bias, rows, taps, values, images, y, out);
  } else {
    return 1;
  }
  return 0;
}
