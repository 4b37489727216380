// The numbers of the output activations.
#pragma once

#include "kernels.h"

namespace sparsegan {

// The value of an OutputActivation by its name; more of them than kernels.h names. silu is x * sigmoid(x). gelu is x
// times the normal distribution function, and gelu_tanh its approximation by a tanh. hardswish is
// x * min(max(x + 3, 0), 6) / 6. softplus is log(1 + e^x).
enum class Curve { none = 0, tanh = 1, sigmoid = 2, silu = 3, gelu = 4, gelu_tanh = 5, hardswish = 6, softplus = 7 };
constexpr int kCurves = 8;

}  // namespace sparsegan
