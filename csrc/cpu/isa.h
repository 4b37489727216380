// Which kernels this process runs: those of the best ISA that the build has and the machine supports, or of the one
// that was asked for.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace sparsegan {

// ISA names of this build, best first.
std::vector<std::string> built_isas();
// Those of them that this machine can run.
std::vector<std::string> supported_isas();

// The table in use. The first call reads SPARSEGAN_CPU_ISA; throws std::invalid_argument when that names an ISA not to
// be had.
const Kernels& kernels();
// Forces an ISA by name, "" for the best; throws std::invalid_argument when it is not to be had.
void set_isa(const std::string& name);

// float32 GFLOP/s of one core on FMAs between registers, the best of several runs of a few milliseconds.
double fma_gflops();

}  // namespace sparsegan
