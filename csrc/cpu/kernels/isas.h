// The instruction sets that kernels.cpp is compiled for, best first. A new instruction set needs a row here and a line
// `add_isa` with its compiler flags in CMakeLists.txt.
//
// X(name, lanes_f32, lanes_f64, registers, sums, max_rows, max_width, has_it)
//   lanes_f32, lanes_f64   elements per vector
//   registers              vector registers
//   sums                   most registers that hold the sums of a register tile
//   max_rows, max_width    most rows of outputs, and most target channels, of a register tile
//   has_it                 expression: whether this machine has the instruction set
#pragma once

// clang-format off
#if defined(__x86_64__)
#define SPARSEGAN_MACHINE_ISAS(X)                                                                                    \
  X(avx512, 16, 8, 32, 24, 8, 4,                                                                                     \
    __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && \
    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))                                             \
  X(avx2, 8, 4, 16, 15, 7, 2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#elif defined(__aarch64__)
#define SPARSEGAN_MACHINE_ISAS(X) \
  X(neon, 4, 2, 32, 24, 8, 4, true)  // a part of every 64-bit ARM processor
#else
#define SPARSEGAN_MACHINE_ISAS(X)
#endif
// clang-format on

// The portable row has the numbers of the AVX-512 row. A machine without AVX-512 can then run every path of that code.
#define SPARSEGAN_ISAS(X) SPARSEGAN_MACHINE_ISAS(X) X(scalar, 16, 8, 32, 24, 8, 4, true)
