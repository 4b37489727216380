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

// The short precisions: sparse_conv of float32 tensors, with 2 or 4 neighbouring source channels in each 32-bit lane of
// the panel of x, rounded to a short type. The weights have that short type.
// X(name, short type in torch's ScalarType, lane type in kernels/lanes.h, source channels per lane)
#define SPARSEGAN_SHORTS(X)                     \
  X(float32_as_int16, Short, Int16Pair, 2)      \
  X(float32_as_bfloat16, BFloat16, Bf16Pair, 2) \
  X(float32_as_int8, Char, Int8Quad, 4)

// A DType is also the row of the dtype, or of the short precision, in the kernel tables.
enum class DType {
#define SPARSEGAN_ROW(name, ...) name,
  SPARSEGAN_DTYPES(SPARSEGAN_ROW) SPARSEGAN_SHORTS(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
};

// Rows of the kernel tables that are per type of panel.
enum PanelType : int {
  kFloatPanel,
  kDoublePanel,
#define SPARSEGAN_ROW(name, scalar_type, lane, channels) k##lane##Panel,
  SPARSEGAN_SHORTS(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
      kPanelTypes
};

struct DTypeRow {
  const char* name;
  int64_t bytes;        // per element of a tensor
  int64_t panel_bytes;  // per element of a panel
  int panel_type;
  int64_t lane_channels;  // source channels per element of a panel of x
  bool integer;           // the sums are integers, which become float32 by a scale per output channel
};
// This is a table because the linker could take a copy of an inline function that was compiled for another ISA.
constexpr DTypeRow kDTypes[] = {
#define SPARSEGAN_ROW(name, scalar_type, element, panel_element) \
  {#name, sizeof(element), sizeof(panel_element), sizeof(panel_element) == 8 ? kDoublePanel : kFloatPanel, 1, false},
    SPARSEGAN_DTYPES(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
#define SPARSEGAN_ROW(name, scalar_type, lane, channels) \
  {#name, sizeof(float), sizeof(float), k##lane##Panel, channels, DType::name != DType::float32_as_bfloat16},
        SPARSEGAN_SHORTS(SPARSEGAN_ROW)
#undef SPARSEGAN_ROW
};
constexpr int kTensorTypes = 3;  // the dtypes of tensors come first
constexpr int kRows = sizeof(kDTypes) / sizeof(kDTypes[0]);

}  // namespace sparsegan
