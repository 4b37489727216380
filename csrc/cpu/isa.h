// The choice of the kernels that this process runs: by default the kernels of the best ISA that is in the build and
// that the machine supports.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace sparsegan {

// Returns the names of the ISAs in this build, best first.
std::vector<std::string> built_isas();
// Returns the names of the ISAs in this build that the machine supports, best first.
std::vector<std::string> supported_isas();

// Returns the table in use. The first call reads SPARSEGAN_CPU_ISA and throws std::invalid_argument where that variable
// names an ISA that is not available.
const Kernels& kernels();
// Forces an ISA by name; "" stands for the best ISA. Throws std::invalid_argument where the ISA is not available.
void set_isa(const std::string& name);

// Returns the float32 GFLOP/s of one core on FMAs between registers: the best of several runs of a few milliseconds.
double fma_gflops();

}  // namespace sparsegan
