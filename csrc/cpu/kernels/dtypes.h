// The dtypes of tensors that the CPU kernels take. A new one is a row here, its conversions in vec.h where its elements
// are not the panel's, and its name in sparsegan/nn/dispatch.py.
#pragma once

#include <cstdint>

namespace sparsegan {

// The upper half of a float32.
struct bf16 {
  uint16_t bits;
};

// X(name, name in torch's ScalarType, element, element of its panels). Values and sums have a panel's elements.
#define SPARSEGAN_DTYPES(X)          \
  X(float32, Float, float, float)    \
  X(float64, Double, double, double) \
  X(bfloat16, BFloat16, bf16, float)

// Also the dtype's row in the kernel tables.
enum class DType {
#define SPARSEGAN_ROW(name, ...) name,
  SPARSEGAN_DTYPES(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
};

// Rows of the kernel tables for panels.
constexpr int kFloatPanel = 0, kDoublePanel = 1, kPanelTypes = 2;

struct DTypeRow {
  const char* name;
  int64_t bytes;        // per element of a tensor
  int64_t panel_bytes;  // per element of a panel
  int panel_type;
};
// A table, not functions: an inline function here could be linked in another ISA's form.
constexpr DTypeRow kDTypes[] = {
#define SPARSEGAN_ROW(name, scalar_type, element, panel_element) \
  {#name, sizeof(element), sizeof(panel_element), sizeof(panel_element) == sizeof(double) ? kDoublePanel : kFloatPanel},
    SPARSEGAN_DTYPES(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
};
constexpr int kTensorTypes = sizeof(kDTypes) / sizeof(kDTypes[0]);

}  // namespace sparsegan
