// Conversions between the arrays of a call and the order and types that the kernels use, for codes of taps, values and
// sums. kernels.h describes each function.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sparsegan::SPARSEGAN_ISA {

inline uint32_t codes(const int32_t* support, int64_t count, int32_t base, uint16_t* out) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t code = static_cast<uint32_t>(support[i]) - static_cast<uint32_t>(base);
    out[i] = static_cast<uint16_t>(code);
    most = most > code ? most : code;
  }
  return most;
}

template <class IO, class T, bool Single>
SPARSEGAN_INLINE bool gather_units(const int32_t* value_index, int64_t count, int64_t units, int64_t vector,
                                   const IO* values, T* out) {
  constexpr int64_t kAhead = 32;
  if constexpr (Single) vector = 1;
  uint32_t bad = 0;
  for (int64_t t = 0; t < count; ++t) {
    __builtin_prefetch(values + value_index[t + kAhead < count ? t + kAhead : t] * vector);
    const uint32_t unit = static_cast<uint32_t>(value_index[t]);
    const bool good = unit < static_cast<uint64_t>(units);
    bad |= !good;
    const IO* const from = values + (good ? unit : 0) * vector;
    for (int64_t k = 0; k < vector; ++k) out[t * vector + k] = widen(from[k]);
  }
  return !bad;
}

template <class IO, class T>
bool gather_values(const int32_t* value_index, int64_t first, int64_t last, int64_t units, int64_t vector,
                   const void* values_, void* out_) {
  const IO* const values = static_cast<const IO*>(values_);
  T* const out = static_cast<T*>(out_) + first * vector;
  if (!value_index) {
    for (int64_t i = 0; i < (last - first) * vector; ++i) out[i] = widen(values[first * vector + i]);
    return true;
  }
  return vector == 1 ? gather_units<IO, T, true>(value_index + first, last - first, units, vector, values, out)
                     : gather_units<IO, T, false>(value_index + first, last - first, units, vector, values, out);
}

template <class IO, class T>
bool scatter_values(const int32_t* value_index, int64_t first, int64_t last, int64_t units, int64_t vector,
                    const void* sums, void* out) {
  bool good = true;
  const T* from = static_cast<const T*>(sums) + first * vector;
  for (int64_t t = first; t < last; ++t, from += vector) {
    const int64_t unit = value_index ? value_index[t] : t;
    if (static_cast<uint64_t>(unit) >= static_cast<uint64_t>(units)) {
      good = false;
      continue;
    }
    IO* const to = static_cast<IO*>(out) + unit * vector;
    for (int64_t k = 0; k < vector; ++k) to[k] = Narrow<IO>::from(from[k]);
  }
  return good;
}

}  // namespace sparsegan::SPARSEGAN_ISA
