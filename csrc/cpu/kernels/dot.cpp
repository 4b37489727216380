// The short precisions of AVX-512 by instructions that not every machine with AVX-512 has: VNNI for integers, and BF16.
// CMake compiles this file once for each of the two. isa.cpp puts the kernels into the table of AVX-512 where they run.
#define SPARSEGAN_ROW_OF avx512
#include "fill.h"

namespace sparsegan {
namespace SPARSEGAN_ISA {
namespace {

constexpr Kernels shorts() {
  Kernels k{};
#if defined(__AVX512BF16__)
  fill_short<Bf16Pair>(k, DType::float32_as_bfloat16, kBf16PairPanel);
#else
  fill_short<Int16Pair>(k, DType::float32_as_int16, kInt16PairPanel);
  fill_short<Int8Quad>(k, DType::float32_as_int8, kInt8QuadPanel);
#endif
  return k;
}

}  // namespace
}  // namespace SPARSEGAN_ISA

#if defined(__AVX512BF16__)
constinit const Kernels kernels_avx512_bf16 = SPARSEGAN_ISA::shorts();
#else
constinit const Kernels kernels_avx512_vnni = SPARSEGAN_ISA::shorts();
#endif

}  // namespace sparsegan
