// The taps of a warp as *steps* in shared memory, and the loop that runs them.
//
// A tap multiplies the columns of a row segment, which are in registers, by one value and adds to the sums of one slot,
// which are in registers too. Only code can select registers. Each pair of column and slot therefore has its own run of
// FMAs, a *case*, and the loop jumps from tap to tap through a table of the cases. The loop takes 8 instructions per
// tap besides the FMAs: a tap is one step, read one step ahead, and nothing is counted or compared. A step that is no
// tap leaves the loop, for the next row segment to be loaded or at the end of the round.
//
// The loop is PTX, because nvcc makes 13 to 17 instructions of a loop around a switch. The host's version of the loop,
// for tests/test_simt.py, has the same cases. tests/test_cuda_build.py proves from nvcc's output that the registers of
// each case are those that its column and slot select.
#pragma once

#include "number.h"
#include "step_cases.h"
#include "tiling.h"
#include "window.h"

namespace sparsegan::cuda {

// A step. `which`: column * slots + slot for a tap, 8 * slots for a row, 8 * slots + 1 at the end. `value`: the weight
// of a tap, or the number of a RowStep in the bits of a float.
struct alignas(8) Step {
  float value;
  unsigned which;
};
inline constexpr int kRound = 32;                 // taps that the lanes of a warp prepare at a time
inline constexpr int kMaxSteps = 2 * kRound + 2;  // per round: taps, rows, the end, one that is only read ahead

// The row that a step loads: the bytes from the first staged row to it, and which of the segment's outer fours its taps
// read. The middle fours are always read.
struct RowStep {
  static constexpr int kFirst = 1 << 24, kLast = 1 << 25, kAfterLast = 1 << 26;
  int number;

  __device__ static RowStep of(int offset, int column_step, int least_column, int greatest_column) {
    return {offset | (least_column < 4 ? kFirst : 0) | (greatest_column >= column_step ? kLast : 0) |
            (greatest_column >= column_step + 4 ? kAfterLast : 0)};
  }
  __device__ int offset() const { return number & (kFirst - 1); }
};

// A row segment in registers: the source columns that the taps of one row read for a strip. `Step` is the number of
// source columns from one column of the strip to the next.
template <class T, int Strip, int ColumnStep>
struct Segment {
  static constexpr int kStride = Strip * ColumnStep / 4;  // fours from one strip to the next
  static constexpr int kFours = kStride + 2;
  static_assert(4 * kFours >= (Strip - 1) * ColumnStep + kReach && kFours <= 6);
  float columns[24];

  // The columns are not set. nvcc then keeps no registers for them between one row and the next.
  __device__ __forceinline__ Segment() {
#pragma unroll
    for (float& column : columns) {
#ifdef SPARSEGAN_SIMT
      column = __int_as_float(0x7fc00000);  // NaN, which a tap must never read
#else
      asm("" : "=f"(column));
#endif
    }
  }

  // `strip`: the start of the lane's strip in the first staged row.
  __device__ __forceinline__ void load(const Tiling& t, const T* strip, RowStep row) {
    const char* const from = reinterpret_cast<const char*>(strip) + row.offset();
    const int stride = t.stride_fours * static_cast<int>(4 * sizeof(T));
#pragma unroll
    for (int m = 0; m < kFours; ++m) {
      const bool read = m == 0             ? (row.number & RowStep::kFirst) != 0
                        : m == kStride     ? (row.number & RowStep::kLast) != 0
                        : m == kStride + 1 ? (row.number & RowStep::kAfterLast) != 0
                                           : true;
      const char* const at = from + m % kStride * stride + m / kStride * static_cast<int>(4 * sizeof(T));
      if (read) {
        float four[4];
        load_four(reinterpret_cast<const T*>(at), four);
#pragma unroll
        for (int i = 0; i < 4; ++i) columns[4 * m + i] = four[i];
      }
    }
  }
};

// Addresses in shared memory, as the loops want them.
#ifdef SPARSEGAN_SIMT
using At = const Step*;
using Dot = float*;
template <class T>
__device__ T* shared_address(T* at) {
  return at;
}
#else
using At = unsigned;
using Dot = unsigned;
__device__ __forceinline__ unsigned shared_address(const void* at) {
  return static_cast<unsigned>(__cvta_generic_to_shared(at));
}
#endif

// The place of the loop in the steps. `next` was read ahead.
struct Cursor {
  At at = {};
  float now = 0;
  unsigned zero = 0;  // threadIdx.x & Tiling::zero
  Step next = {};

  // `steps` must be the same in all lanes, in a way that nvcc can see. Otherwise it adds instructions that join the
  // lanes after each jump.
  __device__ __forceinline__ void start(const Tiling& t, const Step* steps) {
    zero = threadIdx.x & t.zero;
    next = *steps;
    at = shared_address(steps + 1);
  }
  // Where the loop was left for a row: which one.
  __device__ RowStep row() const { return {__float_as_int(now)}; }
};

// Runs taps until a step leaves the loop. Returns whether it is a row, not the end. Per tap: sums += value * columns.
template <int Strip, int ColumnStep>
__device__ __forceinline__ bool run_sums(Cursor& cursor, float (&columns)[24], float (&sums)[slots_of(Strip)][Strip]) {
#ifdef SPARSEGAN_SIMT
  constexpr unsigned kTapSlots = slots_of(Strip);
  for (;;) {
    const unsigned which = cursor.next.which;
    cursor.now = cursor.next.value;
    cursor.next = *cursor.at++;
    if (which >= kReach * kTapSlots) return which == kReach * kTapSlots;
    for (int i = 0; i < Strip; ++i) {
      float& sum = sums[which % kTapSlots][i];
      sum = fmaf(cursor.now, columns[which / kTapSlots + i * ColumnStep], sum);
    }
  }
#else
  // The loop combines each value with 0. nvcc does not know that it is 0, so it expects the value to differ from lane
  // to lane. It would otherwise keep it in a register of the warp, which takes one more instruction per tap and waits
  // for the step that is read ahead.
  unsigned dot = cursor.zero, row;
  SPARSEGAN_RUN_ANY(SPARSEGAN_SUM_LOOP)
  return row != 0;
#endif
}

// Floats from one dot product of a lane to the next. The lanes' dot products of one tap are neighbours, and one lane
// adds them. With 33 floats per tap, the lanes use different banks both when they write and when they add.
inline constexpr int kPitch = 33;
static_assert(kPitch * sizeof(float) == 132, "SPARSEGAN_PITCH of step_cases.h");

// The same with dot products. Per tap: *dot = sum of sums * columns, and `dot` moves on by kPitch.
template <int Strip, int ColumnStep>
__device__ __forceinline__ bool run_dots(Cursor& cursor, float (&columns)[24], float (&sums)[slots_of(Strip)][Strip],
                                         Dot& dot) {
#ifdef SPARSEGAN_SIMT
  constexpr unsigned kTapSlots = slots_of(Strip);
  for (;;) {
    const unsigned which = cursor.next.which;
    cursor.now = cursor.next.value;
    cursor.next = *cursor.at++;
    if (which >= kReach * kTapSlots) return which == kReach * kTapSlots;
    float chains[2] = {};
    for (int i = 0; i < Strip; ++i) {
      float& chain = chains[i % 2];
      chain = fmaf(sums[which % kTapSlots][i], columns[which / kTapSlots + i * ColumnStep], chain);
    }
    *dot = chains[0] + chains[1];
    dot += kPitch;
  }
#else
  unsigned row;
  SPARSEGAN_RUN_ANY(SPARSEGAN_DOT_LOOP)
  return row != 0;
#endif
}

// Writes a step to shared memory, if `write`.
__device__ __forceinline__ void write_step(At steps, int at, float value, unsigned which, bool write) {
#ifdef SPARSEGAN_SIMT
  if (write) const_cast<Step*>(steps)[at] = {value, which};
#else
  asm volatile("{\n.reg .pred write;\nsetp.ne.s32 write, %3, 0;\n@write st.shared.v2.b32 [%0], {%1, %2};\n}" ::"r"(
                   steps + 8 * at),
               "f"(value), "r"(which), "r"(static_cast<int>(write))
               : "memory");
#endif
}

// Writes the steps of a round, to which each lane contributes one tap. The lanes call this function together, with the
// taps in the order of the lanes, and then __syncwarp. `kept`: whether the tap is one of this warp's. `slab`: the first
// slab of the stage. Returns the lanes whose taps are kept. A bad code gives a wrong row, but never a row outside the
// stage.
template <int Strip, int ColumnStep>
__device__ __forceinline__ unsigned write_steps(const Tiling& t, int element_bytes, At steps, unsigned code,
                                                float value, bool kept, int slab) {
  constexpr unsigned kTapSlots = slots_of(Strip), kRow = kReach * kTapSlots, kRowCodes = kSlots * kReach;
  const unsigned me = threadIdx.x % 32, below = (1u << me) - 1;
  const unsigned keeps = __ballot_sync(~0u, kept), before = keeps & below;
  const unsigned code_before = __shfl_sync(~0u, code, 31 - __clz(static_cast<int>(before | 1)));
  const bool new_row = kept && (before == 0 || code_before / kRowCodes != code / kRowCodes);
  const unsigned rows = __ballot_sync(~0u, new_row);

  // The last tap of the row has its greatest column, because taps are sorted by column.
  const unsigned rows_above = rows & ~(2 * below + 1);
  const unsigned of_row =
      keeps & ((rows_above & (0 - rows_above)) - 1);  // below the first of them; all if there is none
  const unsigned last_code = __shfl_sync(~0u, code, 31 - __clz(static_cast<int>(of_row | 1)));
  const unsigned offset = (code / (kRowCodes * kReach) - slab) * t.slab_size + code / kRowCodes % kReach * t.row_pitch;
  const RowStep row = RowStep::of(static_cast<int>(min(offset, static_cast<unsigned>(t.row_limit))) * element_bytes,
                                  ColumnStep, code / kSlots % kReach, last_code / kSlots % kReach);

  const int at = __popc(before) + __popc(rows & (2 * below + 1)), end = __popc(keeps) + __popc(rows);
  write_step(steps, at - 1, __int_as_float(row.number), kRow, new_row);
  write_step(steps, at, value, code / kSlots % kReach * kTapSlots + code % kTapSlots, kept);
  write_step(steps, end + static_cast<int>(me), 0, kRow + 1, me < 2);  // the second one is only read ahead
  return keeps;
}

}  // namespace sparsegan::cuda
