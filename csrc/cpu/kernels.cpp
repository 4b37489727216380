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

}  // namespace
}  // namespace SPARSEGAN_ISA

#define SPARSEGAN_STRING_(x) #x
#define SPARSEGAN_STRING(x) SPARSEGAN_STRING_(x)
#define SPARSEGAN_JOIN_(a, b) a##b
#define SPARSEGAN_JOIN(a, b) SPARSEGAN_JOIN_(a, b)

namespace isa = SPARSEGAN_ISA;

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
    {isa::order_values<float, float>, isa::order_values<double, double>, isa::order_values<isa::bf16, float>},
    {isa::scatter_values<float, float>, isa::scatter_values<double, double>, isa::scatter_values<isa::bf16, float>},
    {isa::gather<float, isa::row.lanes_f32, isa::row.accumulators, isa::row.max_rows>,
     isa::gather<double, isa::row.lanes_f64, isa::row.accumulators, isa::row.max_rows>},
    {isa::wgrad<float, isa::row.lanes_f32>, isa::wgrad<double, isa::row.lanes_f64>},
};

}  // namespace sparsegan
