// Compiled once an ISA: CMake passes SPARSEGAN_ISA and that ISA's flags. An ISA is a row of the table in CMakeLists.txt
// and one here.
#include "kernels.h"

#include "gather.h"
#include "panel.h"
#include "wgrad.h"

namespace sparsegan {
namespace SPARSEGAN_ISA {
namespace {

struct Row {
  int lanes_f32, lanes_f64, accumulators, max_rows;
};
// 16 registers leave 12 for outputs, 32 leave 24. The portable build has the shape of AVX-512, so that a machine
// without AVX-512 still runs every path of it.
constexpr Row avx512{16, 8, 24, 8}, avx2{8, 4, 12, 6}, scalar{16, 8, 24, 8};
constexpr Row row = SPARSEGAN_ISA;

// Independent chains of x * a + b: as many as hide an FMA's latency, nothing from memory.
float fma(int64_t iterations) {
  Vec<float, row.lanes_f32> x[row.accumulators];
  for (int k = 0; k < row.accumulators; ++k)
    x[k] = broadcast<float, row.lanes_f32>(float(k));  // or chains would be merged
  const Vec<float, row.lanes_f32> a = broadcast<float, row.lanes_f32>(0.5f), b = broadcast<float, row.lanes_f32>(1.0f);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (int k = 0; k < row.accumulators; ++k) x[k] = x[k] * a + b;
  }
  for (int k = 1; k < row.accumulators; ++k) x[0] += x[k];
  return sum<float, row.lanes_f32>(x[0]);
}

}  // namespace
}  // namespace SPARSEGAN_ISA

#define SPARSEGAN_STRING_(x) #x
#define SPARSEGAN_STRING(x) SPARSEGAN_STRING_(x)
#define SPARSEGAN_JOIN_(a, b) a##b
#define SPARSEGAN_JOIN(a, b) SPARSEGAN_JOIN_(a, b)

namespace isa = SPARSEGAN_ISA;

#define SPARSEGAN_WIDTHS(kernel, T, L, ...)                                              \
  {isa::kernel<T, L, __VA_ARGS__ kWidths[0]>, isa::kernel<T, L, __VA_ARGS__ kWidths[1]>, \
   isa::kernel<T, L, __VA_ARGS__ kWidths[2]>}
#define SPARSEGAN_TILES isa::row.accumulators, isa::row.max_rows,

extern const Kernels SPARSEGAN_JOIN(kernels_, SPARSEGAN_ISA);
const Kernels SPARSEGAN_JOIN(kernels_, SPARSEGAN_ISA) = {
    SPARSEGAN_STRING(SPARSEGAN_ISA),
    {isa::row.lanes_f32, isa::row.lanes_f64},
    isa::row.accumulators,
    isa::row.max_rows,
    {isa::pack<float, float, isa::row.lanes_f32>, isa::pack<double, double, isa::row.lanes_f64>,
     isa::pack<isa::bf16, float, isa::row.lanes_f32>},
    {isa::unpack<float, float, isa::row.lanes_f32>, isa::unpack<double, double, isa::row.lanes_f64>,
     isa::unpack<isa::bf16, float, isa::row.lanes_f32>},
    isa::codes,
    {isa::order_values<float, float>, isa::order_values<double, double>, isa::order_values<isa::bf16, float>},
    {isa::scatter_values<float, float>, isa::scatter_values<double, double>, isa::scatter_values<isa::bf16, float>},
    {SPARSEGAN_WIDTHS(gather, float, isa::row.lanes_f32, SPARSEGAN_TILES),
     SPARSEGAN_WIDTHS(gather, double, isa::row.lanes_f64, SPARSEGAN_TILES)},
    {SPARSEGAN_WIDTHS(wgrad, float, isa::row.lanes_f32, ), SPARSEGAN_WIDTHS(wgrad, double, isa::row.lanes_f64, )},
    isa::fma,
};

}  // namespace sparsegan
