// What fills a table of kernels: the numbers of the ISA in isas.h, and sparse_conv for a lane type.
//
// SPARSEGAN_ISA is the namespace of the code. SPARSEGAN_ROW_OF is the row of isas.h that the code is for.
#pragma once

#include "isas.h"
#include "kernels.h"
#include "lanes.h"
#include "pack.h"
#include "sparse_conv.h"
#include "unpack.h"
#include "values.h"

#ifndef SPARSEGAN_ROW_OF
#define SPARSEGAN_ROW_OF SPARSEGAN_ISA
#endif

namespace sparsegan::SPARSEGAN_ISA {

namespace rows {
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
}  // namespace rows
constexpr rows::Isa isa = rows::SPARSEGAN_ROW_OF;

template <class T>
constexpr int kLanes = sizeof(T) == sizeof(double) ? isa.lanes_f64 : isa.lanes_f32;

// Fills in sparse_conv on panels of a lane type, for the width kWidths[Width]. A lane type without an instruction has
// small register tiles only: such code shows correctness, and large tiles of it take minutes to compile.
template <class Lane, int Width>
constexpr void fill_sparse_conv(Kernels& k, int row) {
  constexpr int kMostEmulated = 4, L = kLanes<typename Lane::X>, W = kWidths[Width];
  constexpr int most = Lane::template native<L> ? isa.max_tile(W, Lane::kScratch) : kMostEmulated;
  k.lanes[row] = L;
  k.max_tile[row][Width] = most;
  if constexpr (most > 0) {
    k.sparse_conv[row][Width] = sparse_conv<Lane, L, W, most, isa.max_rows>;
    k.sparse_conv_codes[row][Width] = sparse_conv_codes<Lane, L, W, most, isa.max_rows>;
  }
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

// Fills in the kernels of all short precisions.
constexpr void fill_shorts(Kernels& k) {
#define SPARSEGAN_FILL(name, scalar_type, lane, channels) fill_short<lane>(k, DType::name, k##lane##Panel);
  SPARSEGAN_SHORTS(SPARSEGAN_FILL)
#undef SPARSEGAN_FILL
}

}  // namespace sparsegan::SPARSEGAN_ISA
