// The kernel table of one ISA. CMake compiles this file once per ISA, with the flags of the ISA, and defines
// SPARSEGAN_ISA as its name in isas.h.
#include "kernels.h"

#include "isas.h"
#include "lanes.h"
#include "pack.h"
#include "pointwise.h"
#include "sparse_conv.h"
#include "unpack.h"
#include "values.h"
#include "wgrad.h"

namespace sparsegan {
namespace SPARSEGAN_ISA {
namespace {

struct Isa {
  int lanes_f32, lanes_f64, registers, sums, max_rows, max_width;

  // Returns the most output vectors per target channel in a register tile. With one target channel, an FMA takes x from
  // memory and the weight has a register. With more, x and the weight of each channel have registers.
  constexpr int max_tile(int width, int scratch) const {
    if (width > max_width) return 0;
    const int room = (width == 1 ? registers - 1 : registers - width - 1) - scratch;
    return (room < sums ? room : sums) / width;
  }
};
#define SPARSEGAN_ROW(name, lanes_f32, lanes_f64, registers, sums, max_rows, max_width, has_it) \
  [[maybe_unused]] constexpr Isa name{lanes_f32, lanes_f64, registers, sums, max_rows, max_width};
SPARSEGAN_ISAS(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
constexpr Isa isa = SPARSEGAN_ISA;

template <class T>
constexpr int kLanes = sizeof(T) == sizeof(double) ? isa.lanes_f64 : isa.lanes_f32;

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

// Fills in sparse_conv on panels of a lane type, for the width kWidths[Width]. A lane type without an instruction has
// small register tiles only: such code shows correctness, and large tiles of it take minutes to compile.
template <class Lane, int Width>
constexpr void fill_sparse_conv(Kernels& k, int row) {
  constexpr int kMostEmulated = 4, L = kLanes<typename Lane::X>, W = kWidths[Width];
  constexpr int most = Lane::template native<L> ? isa.max_tile(W, Lane::kScratch) : kMostEmulated;
  k.lanes[row] = L;
  k.max_tile[row][Width] = most;
  if constexpr (most > 0) k.sparse_conv[row][Width] = sparse_conv<Lane, L, W, most, isa.max_rows>;
}

// Fills in the kernels on panels of T, for the width kWidths[Width] and all larger widths.
template <class T, int Width = 0>
constexpr void fill_panel(Kernels& k, int row) {
  fill_sparse_conv<Single<T>, Width>(k, row);
  k.wgrad[row][Width] = wgrad<T, kLanes<T>, kWidths[Width]>;
  if constexpr (Width + 1 < kWidthCount) fill_panel<T, Width + 1>(k, row);
}

// Fills in the kernels of a short precision. Its units have one target channel.
template <class Lane>
constexpr void fill_short(Kernels& k, DType dtype, int panel) {
  constexpr int L = kLanes<float>;
  const int row = static_cast<int>(dtype);
  k.pack[row] = pack<float, Lane, L>;
  k.unpack[row] = unpack<float, float, L>;
  k.gather_values[row] = gather_values<float, float>;
  fill_sparse_conv<Lane, 0>(k, panel);
  k.short_precisions |= Lane::template native<L> ? 1 << (row - kTensorTypes) : 0;
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
#define SPARSEGAN_FILL(name, scalar_type, lane, channels) fill_short<lane>(k, DType::name, k##lane##Panel);
  SPARSEGAN_SHORTS(SPARSEGAN_FILL)
#undef SPARSEGAN_FILL
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
