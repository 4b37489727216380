// Compiled once an ISA: CMake passes SPARSEGAN_ISA and that ISA's flags. An ISA is a row of the table in CMakeLists.txt
// and one here.
#include "kernels.h"

#include "panel.h"
#include "pointwise.h"
#include "sparse_conv.h"
#include "wgrad.h"

namespace sparsegan {
namespace SPARSEGAN_ISA {
namespace {

struct Row {
  int lanes_f32, lanes_f64, registers, sums, max_rows, max_width;

  // Vectors of outputs a target channel: with one, an FMA takes x from memory; with more, x and their weights have
  // registers.
  constexpr int max_tile(int width) const {
    if (width > max_width) return 0;
    const int room = width == 1 ? registers - 1 : registers - width - 1;
    return (room < sums ? room : sums) / width;
  }
};
// The portable build has the shape of AVX-512, so that a machine without AVX-512 still runs every path of it.
[[maybe_unused]] constexpr Row avx512{16, 8, 32, 24, 8, 4}, avx2{8, 4, 16, 15, 7, 2}, neon{4, 2, 32, 24, 8, 4},
    scalar{16, 8, 32, 24, 8, 4};
constexpr Row row = SPARSEGAN_ISA;

// Independent chains of x * a + b, nothing from memory.
float fma(int64_t iterations) {
  Vec<float, row.lanes_f32> x[kFmaChains];
  for (int k = 0; k < kFmaChains; ++k) x[k] = broadcast<float, row.lanes_f32>(float(k));  // or chains would be merged
  const Vec<float, row.lanes_f32> a = broadcast<float, row.lanes_f32>(0.5f), b = broadcast<float, row.lanes_f32>(1.0f);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (int k = 0; k < kFmaChains; ++k) x[k] = x[k] * a + b;
  }
  for (int k = 1; k < kFmaChains; ++k) x[0] += x[k];
  return sum<float, row.lanes_f32>(x[0]);
}

template <class T, int L, int W>
constexpr auto sparse_conv_or_null() {
  if constexpr (row.max_tile(W) > 0) {
    return &sparse_conv<T, L, W, row.max_tile(W), row.max_rows>;
  } else {
    return nullptr;
  }
}

}  // namespace
}  // namespace SPARSEGAN_ISA

#define SPARSEGAN_STRING_(x) #x
#define SPARSEGAN_STRING(x) SPARSEGAN_STRING_(x)
#define SPARSEGAN_JOIN_(a, b) a##b
#define SPARSEGAN_JOIN(a, b) SPARSEGAN_JOIN_(a, b)

namespace isa = SPARSEGAN_ISA;

#define SPARSEGAN_GATHER(T, L)                                                                 \
  {isa::sparse_conv_or_null<T, L, kWidths[0]>(), isa::sparse_conv_or_null<T, L, kWidths[1]>(), \
   isa::sparse_conv_or_null<T, L, kWidths[2]>()}
#define SPARSEGAN_WGRAD(T, L) {isa::wgrad<T, L, kWidths[0]>, isa::wgrad<T, L, kWidths[1]>, isa::wgrad<T, L, kWidths[2]>}

extern const Kernels SPARSEGAN_JOIN(kernels_, SPARSEGAN_ISA);
const Kernels SPARSEGAN_JOIN(kernels_, SPARSEGAN_ISA) = {
    SPARSEGAN_STRING(SPARSEGAN_ISA),
    {isa::row.lanes_f32, isa::row.lanes_f64},
    {isa::row.max_tile(kWidths[0]), isa::row.max_tile(kWidths[1]), isa::row.max_tile(kWidths[2])},
    isa::row.max_rows,
    {isa::pack<float, float, isa::row.lanes_f32>, isa::pack<double, double, isa::row.lanes_f64>,
     isa::pack<isa::bf16, float, isa::row.lanes_f32>},
    {isa::unpack<float, float, isa::row.lanes_f32>, isa::unpack<double, double, isa::row.lanes_f64>,
     isa::unpack<isa::bf16, float, isa::row.lanes_f32>},
    isa::codes,
    {isa::order_values<float, float>, isa::order_values<double, double>, isa::order_values<isa::bf16, float>},
    {isa::scatter_values<float, float>, isa::scatter_values<double, double>, isa::scatter_values<isa::bf16, float>},
    {SPARSEGAN_GATHER(float, isa::row.lanes_f32), SPARSEGAN_GATHER(double, isa::row.lanes_f64)},
    {SPARSEGAN_WGRAD(float, isa::row.lanes_f32), SPARSEGAN_WGRAD(double, isa::row.lanes_f64)},
    {isa::pointwise<float, float, isa::row.lanes_f32>, isa::pointwise<double, double, isa::row.lanes_f64>,
     isa::pointwise<isa::bf16, float, isa::row.lanes_f32>},
    isa::fma,
};

}  // namespace sparsegan
