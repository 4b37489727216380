// sparse_conv: y[o, p] (+)= sum over taps of v * x[c, p + shift]. A value is broadcast to all lanes and serves a whole
// register tile of outputs.
//
// The lanes hold different tiles, so that a shift is a step of whole vectors and every load is aligned. A register tile
// is W target channels by R x Q outputs. The W channels belong to one unit and have the same taps: R * Q loads of x per
// tap serve W * R * Q FMAs. The innermost loop runs over the taps of joined source blocks, whose window of x stays in
// the core's caches.
#pragma once

#include "kernels.h"
#include "lanes.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

// Sets of sums of a register tile with `sums` sums. With one set, each tap of a small tile would wait for the FMA
// before it.
constexpr int sum_sets(int sums) { return sums <= 3 ? 4 : sums <= 6 ? 2 : 1; }

// Returns the bits of sum * scale + bias as float32.
template <int L>
SPARSEGAN_INLINE Vec<int32_t, L> as_float(Vec<int32_t, L> sum, const SumScale& s, int64_t channel) {
  const auto real = __builtin_convertvector(sum, Vec<float, L>);
  return reinterpret_cast<Vec<int32_t, L>>(real * broadcast<float, L>(s.scale[channel]) +
                                           broadcast<float, L>(s.bias[channel]));
}

// Adds the products of a tap's W values with a register tile of x to the sums.
template <class Lane, int L, int W, int R, int Q>
SPARSEGAN_INLINE void add_tap(Vec<typename Lane::Sum, L> (&sums)[W][R][Q], const typename Lane::X* values,
                              const typename Lane::X* in, int64_t x_row) {
  using X = typename Lane::X;
  Vec<X, L> v[W];
#pragma GCC unroll 4
  for (int w = 0; w < W; ++w) v[w] = broadcast<X, L>(values[w]);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) {
      const Vec<X, L> a = W == 1 ? load<X, L>(in + q * L) : load_once<X, L>(in + q * L);
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) Lane::template add<L>(sums[w][r][q], v[w], a);
    }
    in += x_row;
    asm("" : "+r"(in));  // keeps one pointer per row; the compiler would compute an address for each FMA
  }
}

// Adds the sums of target channel w of a unit to the outputs, or to init[place] where init is not null. The sum over
// joined blocks is added to the sum before it: the rounding error grows with the square root of the taps of these
// blocks, not of all taps.
template <class Lane, int L, int S, int W, int R, int Q, class Sum = typename Lane::Sum>
SPARSEGAN_INLINE void write_sums(const Vec<Sum, L> (&sums)[S][W][R][Q], int w, Sum* out, int64_t y_row, const Sum* init,
                                 int64_t place, const SumScale* sum_scale, int64_t channel) {
  const Vec<Sum, L> start = broadcast<Sum, L>(init ? init[place] : Sum(0));
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) {
      Vec<Sum, L> sum = sums[0][w][r][q];
#pragma GCC unroll 4
      for (int s = 1; s < S; ++s) sum += sums[s][w][r][q];
      sum += init ? start : load<Sum, L>(out + q * L);
      if constexpr (Lane::kIntegers) {
        if (sum_scale) sum = as_float<L>(sum, *sum_scale, channel);
      }
      store<Sum, L>(out + q * L, sum);
    }
    out += y_row;
    asm("" : "+r"(out));  // as in add_tap
  }
}

template <class Lane, int L, int W, int R, int Q>
void sparse_conv_tile_codes(const TapRange& taps, const typename Lane::X* values, const typename Lane::X* x,
                            int64_t x_row, typename Lane::Sum* y, int64_t y_row, int64_t y_plane,
                            const typename Lane::Sum* init, const SumScale* sum_scale) {
  using X = typename Lane::X;
  using Sum = typename Lane::Sum;
  constexpr int S = sum_sets(W * R * Q);
  const uint16_t* const codes = taps.codes;
  const int32_t* const offsets = taps.offsets;
  const int64_t width = taps.width;
  for (int64_t target = taps.first; target < taps.last; ++target) {
    const int64_t begin = taps.begin(target), end = taps.end(target);
    if (begin == end && !init && !sum_scale) continue;
    // No division where it is not needed: with one target channel per unit, the target is the plane.
    const int64_t channel = taps.phases == 1 ? target * width : target / taps.phases * width;
    const int64_t first_plane = width == 1 ? target : channel * taps.phases + target % taps.phases;
    for (int64_t part = 0; part < width; part += W) {
      Vec<Sum, L> sums[S][W][R][Q] = {};
      const X* const weights = values + part;
      const auto add = [&](Vec<Sum, L>(&acc)[W][R][Q], int64_t tap, const X* in) __attribute__((always_inline)) {
        if constexpr (S > 1) {
          if (taps.value_index) tap = taps.value_index[tap];
        }
        add_tap<Lane, L, W, R, Q>(acc, weights + tap * width, in, x_row);
      };
      int64_t tap = begin;
      if constexpr (S > 1) {
        for (; tap + S <= end; tap += S) {
#pragma GCC unroll 4
          for (int s = 0; s < S; ++s) add(sums[s], tap + s, x + offsets[codes[tap + s]]);
        }
        for (; tap < end; ++tap) add(sums[0], tap, x + offsets[codes[tap]]);
      } else if (begin < end) {
        // Addresses are loaded two taps ahead. Otherwise the FMAs would wait for the loads of code, offset and x in
        // turn.
        int64_t here = offsets[codes[tap]], next = offsets[codes[tap + 1]];
        for (; tap < end; ++tap) {
          const X* const in = x + here;
          here = next;
          next = offsets[codes[tap + 2]];
          add(sums[0], tap, in);
        }
      }
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) {
        write_sums<Lane, L, S, W, R, Q>(sums, w, y + (first_plane + (part + w) * taps.phases) * y_plane, y_row, init,
                                        Lane::kIntegers ? target : channel + part + w, sum_scale, channel + part + w);
      }
    }
  }
}

// Returns the offset at the start of a record.
template <class X>
SPARSEGAN_INLINE int64_t read_offset(const X* record) {
  int32_t offset;
  __builtin_memcpy(&offset, record, sizeof(offset));
  return offset;
}

// The same over records. A pointer walks through the records of all targets, so the loop needs no addresses of its own
// per target.
template <class Lane, int L, int W, int R, int Q>
void sparse_conv_tile(const RecordRange& taps, const typename Lane::X* x, int64_t x_row, typename Lane::Sum* y,
                      int64_t y_row, int64_t y_plane, const typename Lane::Sum* init, const SumScale* sum_scale) {
  using X = typename Lane::X;
  using Sum = typename Lane::Sum;
  constexpr int S = sum_sets(W * R * Q);
  constexpr int64_t kRecord = 1 + W;
  const X* const records = static_cast<const X*>(taps.records);
  const X* record = records + taps.rows[taps.first] * kRecord;
  int64_t unit = taps.first / taps.phases, phase = taps.first % taps.phases;
  Sum* out = y + (unit * W * taps.phases + phase) * y_plane;
  const auto add = [&](Vec<Sum, L>(&acc)[W][R][Q], const X* tap, const X* in)
                       __attribute__((always_inline)) { add_tap<Lane, L, W, R, Q>(acc, tap + 1, in, x_row); };
  const auto next_target = [&]() __attribute__((always_inline)) {
    out += y_plane;
    if (++phase == taps.phases) {
      phase = 0;
      ++unit;
      out += (W - 1) * taps.phases * y_plane;
    }
  };
  for (int64_t target = taps.first; target < taps.last; ++target, next_target()) {
    const X* const end = records + taps.rows[target + 1] * kRecord;
    if (record == end && !init && !sum_scale) continue;
    Vec<Sum, L> sums[S][W][R][Q] = {};
    if constexpr (S > 1) {
      for (; record + S * kRecord <= end; record += S * kRecord) {
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) add(sums[s], record + s * kRecord, x + read_offset(record + s * kRecord));
      }
      for (; record < end; record += kRecord) add(sums[0], record, x + read_offset(record));
    } else {
      int64_t here = read_offset(record), next = read_offset(record + kRecord);
      for (; record < end; record += kRecord) {
        const X* const in = x + here;
        here = next;
        next = read_offset(record + 2 * kRecord);
        add(sums[0], record, in);
      }
    }
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) {
      write_sums<Lane, L, S, W, R, Q>(sums, w, out + w * taps.phases * y_plane, y_row, init,
                                      Lane::kIntegers ? target : unit * W + w, sum_scale, unit * W + w);
    }
  }
}

// codes[R - 1][Q - 1] and records[R - 1][Q - 1] are the kernels of a register tile of R x Q outputs. They are null
// where R * Q is more than MaxTile.
template <class Lane, int L, int W, int MaxTile, int MaxRows>
struct SparseConvTiles {
  decltype(&sparse_conv_tile_codes<Lane, L, W, 1, 1>) codes[MaxRows][kMaxCols] = {};
  decltype(&sparse_conv_tile<Lane, L, W, 1, 1>) records[MaxRows][kMaxCols] = {};

  constexpr SparseConvTiles() { fill<1, 1>(); }

  template <int R, int Q>
  constexpr void fill() {
    if constexpr (R * Q <= MaxTile) {
      codes[R - 1][Q - 1] = sparse_conv_tile_codes<Lane, L, W, R, Q>;
      records[R - 1][Q - 1] = sparse_conv_tile<Lane, L, W, R, Q>;
    }
    if constexpr (Q < kMaxCols) {
      fill<R, Q + 1>();
    } else if constexpr (R < MaxRows) {
      fill<R + 1, 1>();
    }
  }
};

template <class Lane, int L, int W, int MaxTile, int MaxRows>
constexpr SparseConvTiles<Lane, L, W, MaxTile, MaxRows> kSparseConvTiles{};

template <class Lane, int L, int W, int MaxTile, int MaxRows>
void sparse_conv(const RecordRange& taps, const Tiling& t, const Frame& x_frame, const Frame& y_frame, int64_t row,
                 int64_t col, const void* x, void* y, const void* init, const SumScale* sum_scale) {
  using Sum = typename Lane::Sum;
  const int64_t x_row = x_frame.cols * L, y_row = y_frame.cols * L;
  const int64_t rows = t.tile_h - row < t.rows ? t.tile_h - row : t.rows;
  kSparseConvTiles<Lane, L, W, MaxTile, MaxRows>.records[rows - 1][t.cols - 1](
      taps, static_cast<const typename Lane::X*>(x) + row * x_row + col * L, x_row,
      static_cast<Sum*>(y) + row * y_row + col * L, y_row, y_frame.plane, static_cast<const Sum*>(init), sum_scale);
}

template <class Lane, int L, int W, int MaxTile, int MaxRows>
void sparse_conv_codes(const TapRange& taps, const Tiling& t, const Frame& x_frame, const Frame& y_frame, int64_t row,
                       int64_t col, const void* values, const void* x, void* y, const void* init,
                       const SumScale* sum_scale) {
  using X = typename Lane::X;
  using Sum = typename Lane::Sum;
  const int64_t x_row = x_frame.cols * L, y_row = y_frame.cols * L;
  const int64_t rows = t.tile_h - row < t.rows ? t.tile_h - row : t.rows;
  kSparseConvTiles<Lane, L, W, MaxTile, MaxRows>.codes[rows - 1][t.cols - 1](
      taps, static_cast<const X*>(values), static_cast<const X*>(x) + row * x_row + col * L, x_row,
      static_cast<Sum*>(y) + row * y_row + col * L, y_row, y_frame.plane, static_cast<const Sum*>(init), sum_scale);
}

}  // namespace sparsegan::SPARSEGAN_ISA
