// The interface of the kernels for the drivers of the ops: plain argument structs, and one table of functions per ISA.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "isas.h"

// Always inlined, so that the linker never takes a copy of the function that was compiled for another ISA.
#define SPARSEGAN_INLINE inline __attribute__((always_inline))

namespace sparsegan {

// The cut of a batch into tiles, and of the tiles into groups of one tile per vector lane.
// Tile i = (image * tiles_h + row) * tiles_w + col is held by lane i % lanes of group i / lanes.
struct Tiling {
  int64_t images = 0;
  int64_t tile_h = 1, tile_w = 1;    // outputs per tile
  int64_t tiles_h = 1, tiles_w = 1;  // tiles per image
  int64_t lanes = 1, groups = 0;
  int64_t rows = 1, cols = 1;  // sparse_conv: outputs per register tile; wgrad: rows per strip

  int64_t tiles() const { return images * tiles_h * tiles_w; }
};

// The elements around a tensor, as torch's padding_mode names them.
enum class Padding { zeros = 0, reflect = 1, replicate = 2, circular = 3 };

// The mapping of one tensor to panel planes [plane][row][col][lane], where plane = channel * phases + phase. Element
// (row, col) of a phase's grid is element (row * phases_h + phase_h - before_h, col * phases_w + phase_w - before_w) of
// the channel.
struct Frame {
  int64_t channels = 0;       // of a panel; each has lane_channels channels of the tensor
  int64_t lane_channels = 1;  // more than 1 in a short precision, for x
  int64_t phases_h = 1, phases_w = 1;
  int64_t height = 0, width = 0;  // size of a channel, all phases together
  int64_t image_stride = 0, channel_stride = 0;
  // Not 0: the rows of a phase's grid are this many images (fold_images in tiling.cpp).
  int64_t images_as_rows = 0;
  // Place of panel row 0 and column 0 relative to the first output of the tile; negative where a halo comes first.
  int64_t first_h = 0, first_w = 0;
  int64_t rows = 1, cols = 1;  // panel rows and columns per plane: tile and halo
  int64_t plane = 1;           // panel elements from one plane to the next
  int64_t size = 0;            // elements of the whole tensor
  Padding padding = Padding::zeros;
  int64_t before_h = 0, before_w = 0;  // rows and columns of padding before the tensor's first element

  int64_t planes() const { return channels * phases_h * phases_w; }
};

// The transform of a tensor's elements while they are packed: z = x * scale + shift, then z * slope where z is at or
// below 0. The arrays have the panel's type. A null array changes nothing.
struct InputTransform {
  const void* scale = nullptr;  // [images][channels], images image_stride apart; null only if shift is null
  const void* shift = nullptr;
  const void* slope = nullptr;  // [channels]
  int64_t image_stride = 0;

  // In a short precision with integers, z * to_integer is rounded to an integer in [-most, most]; NaN becomes most.
  float to_integer = 1;
  float most = 0;

  bool any() const { return scale || slope; }
};

// How integer sums become float32: sum * scale + bias, with one number of each per target channel.
struct SumScale {
  const float* scale = nullptr;
  const float* bias = nullptr;
};

// The output activation, which is the last function on an output. silu is x * sigmoid(x). gelu is x times the normal
// distribution function, and gelu_tanh its approximation by a tanh. hardswish is x * min(max(x + 3, 0), 6) / 6.
// softplus is log(1 + e^x).
enum class OutputActivation { none, tanh, sigmoid, silu, gelu, gelu_tanh, hardswish, softplus };
constexpr int kOutputActivations = 8;

// The transform of outputs while they are unpacked: z * negative_slope where z is at or below 0, then the activation.
struct OutputTransform {
  double negative_slope = 1;
  OutputActivation activation = OutputActivation::none;
};

// The number of moments per channel and lane. They are the number of elements of the channel in the lane's tile, the
// mean of these elements, and the sum of their squared distances from the mean. Unpack computes the moments as
// [channel][kMoments][lane] of the panel's type.
constexpr int kMoments = 3;

// The taps of a run of source blocks for a range of targets (plan.h). A unit with source channels in `depth` lanes
// counts as `depth` taps here.
struct TapRange {
  const int32_t* rows;           // the plan's rows from the first block of the run on
  int64_t blocks, joined;        // blocks of the plan, blocks of the run
  int64_t depth, width, phases;  // lanes of source channels and target channels per unit; phases of a target channel
  const uint16_t* codes;         // kernels may read two codes behind the code of the last tap
  const int32_t* offsets;        // code -> elements from the span's first plane; has an entry for any 16-bit code
  const int32_t* value_index;    // per tap; null where the values are in the order of the taps
  int64_t first, last;           // targets [first, last)

  SPARSEGAN_INLINE int64_t begin(int64_t target) const { return rows[target * blocks] * depth; }
  SPARSEGAN_INLINE int64_t end(int64_t target) const { return rows[target * blocks + joined] * depth; }
};

// The taps of a run of source blocks as records, for a range of targets. A record is the offset of a tap, in elements
// from the span's first plane, and behind it the values of as many target channels as a register tile has. Offset and
// values are each as wide as a panel element. Units of more target channels stand here as several units.
struct RecordRange {
  const void* records;  // kernels may read two records behind the last
  const int32_t* rows;  // [targets + 1] first record of each target
  int64_t phases;       // of a target channel
  int64_t first, last;  // targets [first, last)
};

// Up to this many elements per lane, pack reads the elements one by one: faster than a vector with few elements.
constexpr int64_t few_elements(int64_t lanes) { return lanes >= 8 ? 2 : lanes / 4; }
// The widest register tile, in output columns.
constexpr int64_t kMaxCols = 8;
// Target channels per register tile; tables are indexed by the place in this list. A unit is cut into register tiles of
// the largest width that divides the unit's and that the ISA has.
constexpr int kWidths[] = {1, 2, 4};
constexpr int kWidthCount = 3;

// Independent chains in `fma`, enough to hide an FMA's latency.
constexpr int kFmaChains = 12;

// One channel of one image. Its elements become z = x * scale + shift, then z * slope where z is at or below 0.
struct Plane {
  const void* x = nullptr;
  double scale = 1, shift = 0, slope = 1;
};

struct Kernels {
  const char* isa;
  int64_t lanes[kPanelTypes];
  // Most output vectors per target channel in a register tile; 0: no such width.
  int64_t max_tile[kPanelTypes][kWidthCount];
  int64_t max_rows;          // most output rows of a register tile
  int32_t short_precisions;  // bit i: the ISA has instructions for row i of SPARSEGAN_SHORTS

  // Copies channels [first, last) of a group's tiles from the tensor to the panel. The dtype decides the panel's type.
  void (*pack[kRows])(const Frame&, const Tiling&, int64_t group, int64_t first, int64_t last, const InputTransform&,
                      const void* tensor, void* panel);
  // Copies channels [first, last) of a group's tiles from the panel to the tensor, as far as the tensor reaches. The
  // moments (kMoments) of the written elements are added to `moments`, which may be null.
  void (*unpack[kRows])(const Frame&, const Tiling&, int64_t group, int64_t first, int64_t last, const void* panel,
                        const OutputTransform&, void* moments, void* tensor);

  // Writes out[i] = support[i] - base. Returns the largest of these differences as unsigned numbers.
  uint32_t (*codes)(const int32_t* support, int64_t count, int32_t base, uint16_t* out);
  // Converts values, `vector` per unit, to the panel's type and the order of the taps: out[t] = values[value_index[t]]
  // for t in [first, last), or values[t] where value_index is null. Returns false where an index is not below `units`;
  // nothing is read at such an index.
  bool (*gather_values[kRows])(const int32_t* value_index, int64_t first, int64_t last, int64_t units, int64_t vector,
                               const void* values, void* out);
  // The inverse, for gradients: out[value_index[t]] = sums[t], converted to the tensor's type.
  bool (*scatter_values[kTensorTypes])(const int32_t* value_index, int64_t first, int64_t last, int64_t units,
                                       int64_t vector, const void* sums, void* out);

  // y[target] += sum over taps (value * x[offset + position]) for the register tile of outputs at (row, col). Where
  // init is not null, the sum is added to init[target channel] and not to y. In a short precision with integers, y and
  // init[target] are integers, and where sum_scale is not null, y becomes float32 afterwards.
  void (*sparse_conv[kPanelTypes][kWidthCount])(const RecordRange&, const Tiling&, const Frame& x_frame,
                                                const Frame& y_frame, int64_t row, int64_t col, const void* x, void* y,
                                                const void* init, const SumScale* sum_scale);
  // The same over codes and values in arrays of their own: slower per register tile, and nothing is made before.
  void (*sparse_conv_codes[kPanelTypes][kWidthCount])(const TapRange&, const Tiling&, const Frame& x_frame,
                                                      const Frame& y_frame, int64_t row, int64_t col,
                                                      const void* values, const void* x, void* y, const void* init,
                                                      const SumScale* sum_scale);
  // dv[tap] += sum over a tile's positions and lanes (gy[target] * x[offset + position]).
  void (*wgrad[kPanelTypes][kWidthCount])(const TapRange&, const Tiling&, const Frame& x_frame, const Frame& y_frame,
                                          const void* gy, const void* x, void* dv);

  // Writes one channel of one image of y: a's elements as Plane says, plus b's where b is not null, then the
  // activation. Each element is repeated `repeat` times in both directions.
  void (*pointwise[kTensorTypes])(const Plane& a, const Plane* b, OutputActivation activation, int64_t height,
                                  int64_t width, int64_t repeat, void* y);

  // Runs kFmaChains * iterations vector FMAs on registers, to measure the peak that kernels are compared with.
  float (*fma)(int64_t iterations);
};

// The tables of this build, best first. The functions of a table must not be called on a machine without its ISA.
#define SPARSEGAN_DECLARE(name, ...) extern const Kernels kernels_##name;
SPARSEGAN_ISAS(SPARSEGAN_DECLARE)
#undef SPARSEGAN_DECLARE
#if defined(__x86_64__)
// Only the kernels of short precisions, for AVX-512 with VNNI and for AVX-512 with BF16 (dot.cpp).
extern const Kernels kernels_avx512_vnni, kernels_avx512_bf16;
#endif

}  // namespace sparsegan
