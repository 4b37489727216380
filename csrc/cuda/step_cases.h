// The PTX of the loops in steps.h. A *case* is the run of FMAs of one column and slot. A table lists all cases.
//
// The operands of the PTX have numbers. 0 to 23 are the columns of the row segment. Then come the six named below. The
// sums (for dot products: the strips) start at 30, slot by slot.
#pragma once

// clang-format off
#define SPARSEGAN_VALUE "%24"       // of the tap that runs
#define SPARSEGAN_NEXT_VALUE "%25"  // read ahead
#define SPARSEGAN_NEXT_CASE "%26"
#define SPARSEGAN_AT "%27"          // the address of the step that is read next
#define SPARSEGAN_DOT "%28"         // the address of the next dot product; for sums, 0
#define SPARSEGAN_ROW "%29"         // 1: the loop was left to load a row; 0: at the end
#define SPARSEGAN_PITCH "132"       // bytes from one dot product to the next

// Eight operands each: sums, and columns of the segment (SPARSEGAN_COLUMNS_<step>_<first>).
#define SPARSEGAN_SUMS_0 30, 31, 32, 33, 34, 35, 36, 37
#define SPARSEGAN_SUMS_1 38, 39, 40, 41, 42, 43, 44, 45
#define SPARSEGAN_SUMS_2 46, 47, 48, 49, 50, 51, 52, 53
#define SPARSEGAN_SUMS_3 54, 55, 56, 57, 58, 59, 60, 61
#define SPARSEGAN_SUMS_4 62, 63, 64, 65, 66, 67, 68, 69
#define SPARSEGAN_SUMS_5 70, 71, 72, 73, 74, 75, 76, 77
#define SPARSEGAN_SUMS_6 78, 79, 80, 81, 82, 83, 84, 85
#define SPARSEGAN_SUMS_7 86, 87, 88, 89, 90, 91, 92, 93
#define SPARSEGAN_SUMS_8 94, 95, 96, 97, 98, 99, 100, 101
#define SPARSEGAN_SUMS_9 102, 103, 104, 105, 106, 107, 108, 109
#define SPARSEGAN_SUMS_10 110, 111, 112, 113, 114, 115, 116, 117
#define SPARSEGAN_SUMS_11 118, 119, 120, 121, 122, 123, 124, 125
#define SPARSEGAN_SUMS_12 126, 127, 128, 129, 130, 131, 132, 133
#define SPARSEGAN_SUMS_13 134, 135, 136, 137, 138, 139, 140, 141
#define SPARSEGAN_SUMS_14 142, 143, 144, 145, 146, 147, 148, 149
#define SPARSEGAN_SUMS_15 150, 151, 152, 153, 154, 155, 156, 157
#define SPARSEGAN_COLUMNS_1_0 0, 1, 2, 3, 4, 5, 6, 7
#define SPARSEGAN_COLUMNS_1_1 1, 2, 3, 4, 5, 6, 7, 8
#define SPARSEGAN_COLUMNS_1_2 2, 3, 4, 5, 6, 7, 8, 9
#define SPARSEGAN_COLUMNS_1_3 3, 4, 5, 6, 7, 8, 9, 10
#define SPARSEGAN_COLUMNS_1_4 4, 5, 6, 7, 8, 9, 10, 11
#define SPARSEGAN_COLUMNS_1_5 5, 6, 7, 8, 9, 10, 11, 12
#define SPARSEGAN_COLUMNS_1_6 6, 7, 8, 9, 10, 11, 12, 13
#define SPARSEGAN_COLUMNS_1_7 7, 8, 9, 10, 11, 12, 13, 14
#define SPARSEGAN_COLUMNS_1_8 8, 9, 10, 11, 12, 13, 14, 15
#define SPARSEGAN_COLUMNS_1_9 9, 10, 11, 12, 13, 14, 15, 16
#define SPARSEGAN_COLUMNS_1_10 10, 11, 12, 13, 14, 15, 16, 17
#define SPARSEGAN_COLUMNS_1_11 11, 12, 13, 14, 15, 16, 17, 18
#define SPARSEGAN_COLUMNS_1_12 12, 13, 14, 15, 16, 17, 18, 19
#define SPARSEGAN_COLUMNS_1_13 13, 14, 15, 16, 17, 18, 19, 20
#define SPARSEGAN_COLUMNS_1_14 14, 15, 16, 17, 18, 19, 20, 21
#define SPARSEGAN_COLUMNS_1_15 15, 16, 17, 18, 19, 20, 21, 22
#define SPARSEGAN_COLUMNS_2_0 0, 2, 4, 6, 8, 10, 12, 14
#define SPARSEGAN_COLUMNS_2_1 1, 3, 5, 7, 9, 11, 13, 15
#define SPARSEGAN_COLUMNS_2_2 2, 4, 6, 8, 10, 12, 14, 16
#define SPARSEGAN_COLUMNS_2_3 3, 5, 7, 9, 11, 13, 15, 17
#define SPARSEGAN_COLUMNS_2_4 4, 6, 8, 10, 12, 14, 16, 18
#define SPARSEGAN_COLUMNS_2_5 5, 7, 9, 11, 13, 15, 17, 19
#define SPARSEGAN_COLUMNS_2_6 6, 8, 10, 12, 14, 16, 18, 20
#define SPARSEGAN_COLUMNS_2_7 7, 9, 11, 13, 15, 17, 19, 21

// The two loops: what a case does per column, and before and after its columns.
#define SPARSEGAN_SUM(chain, s, c) "fma.rn.f32 %" #s ", %" #c ", " SPARSEGAN_VALUE ", %" #s ";\n"
#define SPARSEGAN_SUM_BEGIN
#define SPARSEGAN_SUM_END "bra.uni next;\n"
// A dot product has two chains of sums, because each FMA waits for the one before it in its chain.
#define SPARSEGAN_DOT_PRODUCT(chain, s, c) "fma.rn.f32 " #chain ", %" #s ", %" #c ", " #chain ";\n"
#define SPARSEGAN_DOT_PRODUCT_BEGIN "mov.f32 even, 0f00000000;\nmov.f32 odd, 0f00000000;\n"
#define SPARSEGAN_DOT_PRODUCT_END "bra.uni store;\n"

// All eight columns, and the first or last four sums of eight.
#define SPARSEGAN_EIGHT_(DO, s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, c4, c5, c6, c7) \
  DO(even, s0, c0) DO(odd, s1, c1) DO(even, s2, c2) DO(odd, s3, c3) \
  DO(even, s4, c4) DO(odd, s5, c5) DO(even, s6, c6) DO(odd, s7, c7)
#define SPARSEGAN_LOW_(DO, s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, c4, c5, c6, c7) \
  DO(even, s0, c0) DO(odd, s1, c1) DO(even, s2, c2) DO(odd, s3, c3)
#define SPARSEGAN_HIGH_(DO, s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, c4, c5, c6, c7) \
  DO(even, s4, c0) DO(odd, s5, c1) DO(even, s6, c2) DO(odd, s7, c3)
#define SPARSEGAN_EIGHT(...) SPARSEGAN_EIGHT_(__VA_ARGS__)
#define SPARSEGAN_LOW(...) SPARSEGAN_LOW_(__VA_ARGS__)
#define SPARSEGAN_HIGH(...) SPARSEGAN_HIGH_(__VA_ARGS__)

// The case of one column and slot, for each pair of strip and step. `row`: of SPARSEGAN_SUMS. `column8`: column + 8.
#define SPARSEGAN_LABEL(column, slot) "C" #column "S" #slot
#define SPARSEGAN_CASE(DO, column, slot, ...) \
  SPARSEGAN_LABEL(column, slot) ":\n" DO##_BEGIN __VA_ARGS__ DO##_END
#define SPARSEGAN_CASE_16_1(DO, column, column8, slot, row, next_row) SPARSEGAN_CASE(DO, column, slot, \
  SPARSEGAN_EIGHT(DO, SPARSEGAN_SUMS_##row, SPARSEGAN_COLUMNS_1_##column) \
  SPARSEGAN_EIGHT(DO, SPARSEGAN_SUMS_##next_row, SPARSEGAN_COLUMNS_1_##column8))
#define SPARSEGAN_CASE_8(DO, step, column, slot) SPARSEGAN_CASE(DO, column, slot, \
  SPARSEGAN_EIGHT(DO, SPARSEGAN_SUMS_##slot, SPARSEGAN_COLUMNS_##step##_##column))
#define SPARSEGAN_CASES_4(DO, step, column, row, low_slot, high_slot) \
  SPARSEGAN_CASE(DO, column, low_slot, \
                 SPARSEGAN_LOW(DO, SPARSEGAN_SUMS_##row, SPARSEGAN_COLUMNS_##step##_##column)) \
  SPARSEGAN_CASE(DO, column, high_slot, \
                 SPARSEGAN_HIGH(DO, SPARSEGAN_SUMS_##row, SPARSEGAN_COLUMNS_##step##_##column))

// All slots of a column.
#define SPARSEGAN_SLOTS_16_1(DO, column, column8) \
  SPARSEGAN_CASE_16_1(DO, column, column8, 0, 0, 1) \
  SPARSEGAN_CASE_16_1(DO, column, column8, 1, 2, 3) \
  SPARSEGAN_CASE_16_1(DO, column, column8, 2, 4, 5) \
  SPARSEGAN_CASE_16_1(DO, column, column8, 3, 6, 7) \
  SPARSEGAN_CASE_16_1(DO, column, column8, 4, 8, 9) \
  SPARSEGAN_CASE_16_1(DO, column, column8, 5, 10, 11) \
  SPARSEGAN_CASE_16_1(DO, column, column8, 6, 12, 13) \
  SPARSEGAN_CASE_16_1(DO, column, column8, 7, 14, 15)
#define SPARSEGAN_SLOTS_8(DO, step, column) \
  SPARSEGAN_CASE_8(DO, step, column, 0) SPARSEGAN_CASE_8(DO, step, column, 1) \
  SPARSEGAN_CASE_8(DO, step, column, 2) SPARSEGAN_CASE_8(DO, step, column, 3) \
  SPARSEGAN_CASE_8(DO, step, column, 4) SPARSEGAN_CASE_8(DO, step, column, 5) \
  SPARSEGAN_CASE_8(DO, step, column, 6) SPARSEGAN_CASE_8(DO, step, column, 7) \
  SPARSEGAN_CASE_8(DO, step, column, 8) SPARSEGAN_CASE_8(DO, step, column, 9) \
  SPARSEGAN_CASE_8(DO, step, column, 10) SPARSEGAN_CASE_8(DO, step, column, 11) \
  SPARSEGAN_CASE_8(DO, step, column, 12) SPARSEGAN_CASE_8(DO, step, column, 13) \
  SPARSEGAN_CASE_8(DO, step, column, 14) SPARSEGAN_CASE_8(DO, step, column, 15)
#define SPARSEGAN_SLOTS_4(DO, step, column) \
  SPARSEGAN_CASES_4(DO, step, column, 0, 0, 1) \
  SPARSEGAN_CASES_4(DO, step, column, 1, 2, 3) \
  SPARSEGAN_CASES_4(DO, step, column, 2, 4, 5) \
  SPARSEGAN_CASES_4(DO, step, column, 3, 6, 7) \
  SPARSEGAN_CASES_4(DO, step, column, 4, 8, 9) \
  SPARSEGAN_CASES_4(DO, step, column, 5, 10, 11) \
  SPARSEGAN_CASES_4(DO, step, column, 6, 12, 13) \
  SPARSEGAN_CASES_4(DO, step, column, 7, 14, 15)

// All cases.
#define SPARSEGAN_CASES_16_1(DO) \
  SPARSEGAN_SLOTS_16_1(DO, 0, 8) \
  SPARSEGAN_SLOTS_16_1(DO, 1, 9) \
  SPARSEGAN_SLOTS_16_1(DO, 2, 10) \
  SPARSEGAN_SLOTS_16_1(DO, 3, 11) \
  SPARSEGAN_SLOTS_16_1(DO, 4, 12) \
  SPARSEGAN_SLOTS_16_1(DO, 5, 13) \
  SPARSEGAN_SLOTS_16_1(DO, 6, 14) \
  SPARSEGAN_SLOTS_16_1(DO, 7, 15)
#define SPARSEGAN_CASES_8_1(DO) \
  SPARSEGAN_SLOTS_8(DO, 1, 0) SPARSEGAN_SLOTS_8(DO, 1, 1) \
  SPARSEGAN_SLOTS_8(DO, 1, 2) SPARSEGAN_SLOTS_8(DO, 1, 3) \
  SPARSEGAN_SLOTS_8(DO, 1, 4) SPARSEGAN_SLOTS_8(DO, 1, 5) \
  SPARSEGAN_SLOTS_8(DO, 1, 6) SPARSEGAN_SLOTS_8(DO, 1, 7)
#define SPARSEGAN_CASES_8_2(DO) \
  SPARSEGAN_SLOTS_8(DO, 2, 0) SPARSEGAN_SLOTS_8(DO, 2, 1) \
  SPARSEGAN_SLOTS_8(DO, 2, 2) SPARSEGAN_SLOTS_8(DO, 2, 3) \
  SPARSEGAN_SLOTS_8(DO, 2, 4) SPARSEGAN_SLOTS_8(DO, 2, 5) \
  SPARSEGAN_SLOTS_8(DO, 2, 6) SPARSEGAN_SLOTS_8(DO, 2, 7)
#define SPARSEGAN_CASES_4_1(DO) \
  SPARSEGAN_SLOTS_4(DO, 1, 0) SPARSEGAN_SLOTS_4(DO, 1, 1) \
  SPARSEGAN_SLOTS_4(DO, 1, 2) SPARSEGAN_SLOTS_4(DO, 1, 3) \
  SPARSEGAN_SLOTS_4(DO, 1, 4) SPARSEGAN_SLOTS_4(DO, 1, 5) \
  SPARSEGAN_SLOTS_4(DO, 1, 6) SPARSEGAN_SLOTS_4(DO, 1, 7)
#define SPARSEGAN_CASES_4_2(DO) \
  SPARSEGAN_SLOTS_4(DO, 2, 0) SPARSEGAN_SLOTS_4(DO, 2, 1) \
  SPARSEGAN_SLOTS_4(DO, 2, 2) SPARSEGAN_SLOTS_4(DO, 2, 3) \
  SPARSEGAN_SLOTS_4(DO, 2, 4) SPARSEGAN_SLOTS_4(DO, 2, 5) \
  SPARSEGAN_SLOTS_4(DO, 2, 6) SPARSEGAN_SLOTS_4(DO, 2, 7)

// The table of the cases: column * slots + slot. The two cases that leave the loop come last.
#define SPARSEGAN_LABELS_8(column) \
  SPARSEGAN_LABEL(column, 0) ", " SPARSEGAN_LABEL(column, 1) ", " SPARSEGAN_LABEL(column, 2) ", " SPARSEGAN_LABEL(column, 3) ", " SPARSEGAN_LABEL(column, 4) ", " SPARSEGAN_LABEL(column, 5) ", " SPARSEGAN_LABEL(column, 6) ", " SPARSEGAN_LABEL(column, 7) ", "
#define SPARSEGAN_LABELS_16(column) \
  SPARSEGAN_LABELS_8(column) SPARSEGAN_LABEL(column, 8) ", " SPARSEGAN_LABEL(column, 9) ", " SPARSEGAN_LABEL(column, 10) ", " SPARSEGAN_LABEL(column, 11) ", " SPARSEGAN_LABEL(column, 12) ", " SPARSEGAN_LABEL(column, 13) ", " SPARSEGAN_LABEL(column, 14) ", " SPARSEGAN_LABEL(column, 15) ", "
#define SPARSEGAN_TABLE_8 \
  SPARSEGAN_LABELS_8(0) SPARSEGAN_LABELS_8(1) SPARSEGAN_LABELS_8(2) SPARSEGAN_LABELS_8(3) SPARSEGAN_LABELS_8(4) SPARSEGAN_LABELS_8(5) SPARSEGAN_LABELS_8(6) SPARSEGAN_LABELS_8(7) "row, end"
#define SPARSEGAN_TABLE_16 \
  SPARSEGAN_LABELS_16(0) SPARSEGAN_LABELS_16(1) SPARSEGAN_LABELS_16(2) SPARSEGAN_LABELS_16(3) SPARSEGAN_LABELS_16(4) SPARSEGAN_LABELS_16(5) SPARSEGAN_LABELS_16(6) SPARSEGAN_LABELS_16(7) "row, end"

#define SPARSEGAN_LOOP(SLOTS, CASES, STORE, MOVE) \
  "{\n.reg .u32 jump;\n.reg .f32 even, odd;\n" \
  "table: .branchtargets " SPARSEGAN_TABLE_##SLOTS ";\n" \
  "bra.uni next;\n" STORE \
  "next:\n" \
  MOVE \
  "mov.b32 jump, " SPARSEGAN_NEXT_CASE ";\n" \
  "ld.shared.v2.b32 {" SPARSEGAN_NEXT_VALUE ", " SPARSEGAN_NEXT_CASE "}, [" SPARSEGAN_AT "];\n" \
  "add.u32 " SPARSEGAN_AT ", " SPARSEGAN_AT ", 8;\n" \
  "brx.idx.uni jump, table;\n" CASES \
  "row:\nmov.u32 " SPARSEGAN_ROW ", 1;\nbra.uni leave;\nend:\nmov.u32 " SPARSEGAN_ROW ", 0;\nleave:\n}"
#define SPARSEGAN_SUM_LOOP(SLOTS, STRIP, STEP) SPARSEGAN_LOOP(SLOTS, SPARSEGAN_CASES_##STRIP##_##STEP(SPARSEGAN_SUM), , \
  "xor.b32 " SPARSEGAN_VALUE ", " SPARSEGAN_NEXT_VALUE ", " SPARSEGAN_DOT ";\n")
#define SPARSEGAN_DOT_LOOP(SLOTS, STRIP, STEP) \
  SPARSEGAN_LOOP(SLOTS, SPARSEGAN_CASES_##STRIP##_##STEP(SPARSEGAN_DOT_PRODUCT), "store:\nadd.f32 even, even, odd;\n" \
    "st.shared.f32 [" SPARSEGAN_DOT "], even;\nadd.u32 " SPARSEGAN_DOT ", " SPARSEGAN_DOT ", " SPARSEGAN_PITCH ";\n", \
    "mov.b32 " SPARSEGAN_VALUE ", " SPARSEGAN_NEXT_VALUE ";\n")

// The operands. `sums` has 128 or 64 numbers, in rows of `strip`.
#define SPARSEGAN_FOUR(AT, n) "+f"(AT(n)), "+f"(AT(n + 1)), "+f"(AT(n + 2)), "+f"(AT(n + 3))
#define SPARSEGAN_SIXTEEN(AT, n) \
  SPARSEGAN_FOUR(AT, n), SPARSEGAN_FOUR(AT, n + 4), SPARSEGAN_FOUR(AT, n + 8), SPARSEGAN_FOUR(AT, n + 12)
#define SPARSEGAN_SIXTY_FOUR(AT, n) \
  SPARSEGAN_SIXTEEN(AT, n), SPARSEGAN_SIXTEEN(AT, n + 16), SPARSEGAN_SIXTEEN(AT, n + 32), SPARSEGAN_SIXTEEN(AT, n + 48)
#define SPARSEGAN_COLUMN_AT(n) columns[n]
#define SPARSEGAN_SUM_AT(n) sums[(n) / Strip][(n) % Strip]
#define SPARSEGAN_OPERANDS_4 SPARSEGAN_SIXTY_FOUR(SPARSEGAN_SUM_AT, 0)
#define SPARSEGAN_OPERANDS_8 SPARSEGAN_OPERANDS_4, SPARSEGAN_SIXTY_FOUR(SPARSEGAN_SUM_AT, 64)
#define SPARSEGAN_OPERANDS_16 SPARSEGAN_OPERANDS_8
#define SPARSEGAN_RUN(LOOP, SLOTS, STRIP, STEP) \
  if constexpr (Strip == STRIP && ColumnStep == STEP) { \
    asm volatile(LOOP(SLOTS, STRIP, STEP) \
                 : SPARSEGAN_SIXTEEN(SPARSEGAN_COLUMN_AT, 0), SPARSEGAN_FOUR(SPARSEGAN_COLUMN_AT, 16), \
                   SPARSEGAN_FOUR(SPARSEGAN_COLUMN_AT, 20), "+f"(cursor.now), "+f"(cursor.next.value), \
                   "+r"(cursor.next.which), "+r"(cursor.at), "+r"(dot), "=r"(row), SPARSEGAN_OPERANDS_##STRIP : : "memory"); \
  }
#define SPARSEGAN_RUN_ANY(LOOP) \
  SPARSEGAN_RUN(LOOP, 8, 16, 1) \
  SPARSEGAN_RUN(LOOP, 16, 8, 1) \
  SPARSEGAN_RUN(LOOP, 16, 8, 2) \
  SPARSEGAN_RUN(LOOP, 16, 4, 1) \
  SPARSEGAN_RUN(LOOP, 16, 4, 2)
// clang-format on
