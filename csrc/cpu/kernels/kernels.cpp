// The kernel table of one ISA. CMake compiles this file once per ISA, with the flags of the ISA, and defines
// SPARSEGAN_ISA as its name in isas.h.
#include "kernels.h"

#include "fill.h"
#include "pointwise.h"
#include "wgrad.h"

namespace sparsegan {
namespace SPARSEGAN_ISA {
namespace {

// Independent chains of x * a + b on registers.
float fma(int64_t iterations) {
  constexpr int L = kLanes<float>;
  Vec<float, L> x[kFmaChains];
  for (int k = 0; k < kFmaChains; ++k) x[k] = broadcast<float, L>(float(k));  // equal chains would be merged
  const Vec<float, L> a = broadcast<float, L>(0.5f), b = broadcast<float, L>(1.0f);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (int k = 0; k < kFmaChains; ++k) x[k] = x[k] * a + b;
  }
  for (int k = 1; k < kFmaChains; ++k) x[0] += x[k];
  return sum<float, L>(x[0]);
}

// Fills in the kernels that convert between tensors of IO and panels of T.
template <class IO, class T>
constexpr void fill_dtype(Kernels& k, DType dtype) {
  constexpr int L = kLanes<T>;
  const int row = static_cast<int>(dtype);
  k.pack[row] = pack<IO, Single<T>, L>;
  k.unpack[row] = unpack<IO, T, L>;
  k.gather_values[row] = gather_values<IO, T>;
  k.scatter_values[row] = scatter_values<IO, T>;
  k.pointwise[row] = pointwise<IO, T, L>;
}

// Fills in the kernels on panels of T, for the width kWidths[Width] and all larger widths.
template <class T, int Width = 0>
constexpr void fill_panel(Kernels& k, int row) {
  fill_sparse_conv<Single<T>, Width>(k, row);
  k.wgrad[row][Width] = wgrad<T, kLanes<T>, kWidths[Width]>;
  if constexpr (Width + 1 < kWidthCount) fill_panel<T, Width + 1>(k, row);
}

constexpr Kernels table(const char* name) {
  Kernels k{};
  k.isa = name;
  k.max_rows = isa.max_rows;
  k.codes = codes;
  k.fma = fma;
#define SPARSEGAN_FILL(name, scalar_type, element, panel_element) fill_dtype<element, panel_element>(k, DType::name);
  SPARSEGAN_DTYPES(SPARSEGAN_FILL)
#undef SPARSEGAN_FILL
  fill_panel<float>(k, kFloatPanel);
  fill_panel<double>(k, kDoublePanel);
  fill_shorts(k);
  return k;
}

}  // namespace
}  // namespace SPARSEGAN_ISA

#define SPARSEGAN_STRING_(x) #x
#define SPARSEGAN_STRING(x) SPARSEGAN_STRING_(x)
#define SPARSEGAN_JOIN_(a, b) a##b
#define SPARSEGAN_JOIN(a, b) SPARSEGAN_JOIN_(a, b)

// The compiler must fill the table: code that runs at program start would be compiled for the ISA, which the machine
// may not have.
constinit const Kernels SPARSEGAN_JOIN(kernels_, SPARSEGAN_ISA) = SPARSEGAN_ISA::table(SPARSEGAN_STRING(SPARSEGAN_ISA));

}  // namespace sparsegan
