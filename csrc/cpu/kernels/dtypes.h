// The tensor dtypes that the CPU kernels take. A new dtype needs a row here, its name in sparsegan/nn/dispatch.py and,
// where the elements of tensor and panel differ in type, its conversions in vec.h.
#pragma once

#include <cstdint>

namespace sparsegan {

// bfloat16: the upper half of a float32.
struct bf16 {
  uint16_t bits;
};

// X(name, name in torch's ScalarType, type of a tensor's elements, type of a panel's elements). Inside the kernels,
// values and sums have the type of a panel's elements.
#define SPARSEGAN_DTYPES(X)          \
  X(float32, Float, float, float)    \
  X(float64, Double, double, double) \
  X(bfloat16, BFloat16, bf16, float)

// A DType is also the row of the dtype in the kernel tables.
enum class DType {
#define SPARSEGAN_ROW(name, ...) name,
  SPARSEGAN_DTYPES(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
};

// Rows of the kernel tables that are per type of panel.
constexpr int kFloatPanel = 0, kDoublePanel = 1, kPanelTypes = 2;

struct DTypeRow {
  const char* name;
  int64_t bytes;        // per element of a tensor
  int64_t panel_bytes;  // per element of a panel
  int panel_type;
};
// This is a table because the linker could take a copy of an inline function that was compiled for another ISA.
constexpr DTypeRow kDTypes[] = {
#define SPARSEGAN_ROW(name, scalar_type, element, panel_element) \
  {#name, sizeof(element), sizeof(panel_element), sizeof(panel_element) == sizeof(double) ? kDoublePanel : kFloatPanel},
    SPARSEGAN_DTYPES(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
};
constexpr int kTensorTypes = sizeof(kDTypes) / sizeof(kDTypes[0]);

}  // namespace sparsegan
