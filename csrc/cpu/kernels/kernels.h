// What the drivers of the ops know of the kernels: plain argument structs, and one table of functions per ISA.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "isas.h"

// Never a call, and so never linked in another ISA's form.
#define SPARSEGAN_INLINE inline __attribute__((always_inline))

namespace sparsegan {

// How a batch is cut into tiles, and tiles into groups of one tile per vector lane.
// Tile i = (image * tiles_h + row) * tiles_w + col; lane i % lanes of group i / lanes holds it.
struct Tiling {
  int64_t images = 0;
  int64_t tile_h = 1, tile_w = 1;    // outputs per tile
  int64_t tiles_h = 1, tiles_w = 1;  // tiles per image
  int64_t lanes = 1, groups = 0;
  int64_t rows = 1, cols = 1;  // outputs per register tile (sparse_conv), rows per strip (wgrad)

  int64_t tiles() const { return images * tiles_h * tiles_w; }
};

// The elements around a tensor.
enum class Padding { zeros = 0, reflect = 1, replicate = 2, circular = 3 };

// How one tensor maps to panel planes [plane][row][col][lane]; plane = channel * phases + phase. Element (row, col) of
// a phase's grid is element (row * phases_h + phase_h - before_h, col * phases_w + phase_w - before_w) of the channel.
struct Frame {
  int64_t channels = 0;
  int64_t phases_h = 1, phases_w = 1;
  int64_t height = 0, width = 0;  // of a channel, all phases together
  int64_t image_stride = 0, channel_stride = 0;
  // Where not 0: the rows of a phase's grid are this many images, see fold_images in tiling.cpp.
  int64_t images_as_rows = 0;
  // Panel row and column 0, relative to the tile's own first element: <= 0 with a halo before.
  int64_t first_h = 0, first_w = 0;
  int64_t rows = 1, cols = 1;  // panel rows and columns per plane: tile and halo
  int64_t plane = 1;           // panel elements from one plane to the next
  int64_t size = 0;            // elements of the whole tensor
  Padding padding = Padding::zeros;
  int64_t before_h = 0, before_w = 0;  // rows and columns of padding that the grid begins with

  int64_t planes() const { return channels * phases_h * phases_w; }
};

// Done to a tensor's elements on their way into a kernel: z = x * scale + shift, and z * slope where z is not above
// 0. Arrays of the panel's type; a null one changes nothing.
struct InputTransform {
  const void* scale = nullptr;  // [images][channels], rows image_stride apart; both or neither
  const void* shift = nullptr;
  const void* slope = nullptr;  // [channels]
  int64_t image_stride = 0;

  bool any() const { return scale || slope; }
};

// The last function over an output.
enum class OutputActivation { none = 0, tanh = 1, sigmoid = 2 };
constexpr int kOutputActivations = 3;

// Done to outputs on their way out of a kernel: z * negative_slope where z is not above 0, then the activation.
struct OutputTransform {
  double negative_slope = 1;
  OutputActivation activation = OutputActivation::none;
};

// Moments, which unpack finds of each lane's tile in a channel: the number of elements, their mean, and the sum of
// their squared distances from the mean, as [channel][kMoments][lane] of the panel's type.
constexpr int kMoments = 3;

// The taps of some source blocks for a range of targets; see plan.h. Where a unit is `depth` source channels deep, each
// of these is a tap of its own here.
struct TapRange {
  const int32_t* rows;           // of the first of these blocks
  int64_t blocks, joined;        // blocks of the plan, and how many of them these are
  int64_t depth, width, phases;  // source and target channels per unit; phases of a target channel
  const uint16_t* codes;         // two more may be read than there are taps
  const int32_t* offsets;        // code -> elements from the span's first plane; may be read at any 16 bits
  const int32_t* value_index;    // per tap; null where the values are in the order of the taps
  int64_t first, last;           // targets

  SPARSEGAN_INLINE int64_t begin(int64_t target) const { return rows[target * blocks] * depth; }
  SPARSEGAN_INLINE int64_t end(int64_t target) const { return rows[target * blocks + joined] * depth; }
};

// Pack takes up to so many elements of a lane one by one: faster than a vector hardly filled.
constexpr int64_t few_elements(int64_t lanes) { return lanes >= 8 ? 2 : lanes / 4; }
// The widest register tile, in output columns.
constexpr int64_t kMaxCols = 8;
// Target channels per register tile: index i is kWidths[i]. A unit is cut into the widest that divides it and is there.
constexpr int kWidths[] = {1, 2, 4};
constexpr int kWidthCount = 3;

// Chains of `fma`: as many as hide an FMA's latency.
constexpr int kFmaChains = 12;

// One channel of one image, whose elements become z = x * scale + shift, z * slope where not above 0.
struct Plane {
  const void* x = nullptr;
  double scale = 1, shift = 0, slope = 1;
};

struct Kernels {
  const char* isa;
  int64_t lanes[kPanelTypes];
  int64_t max_tile[kWidthCount];  // vectors of outputs per target channel in a register tile; 0: no such width
  int64_t max_rows;               // the tallest register tile

  // tensor -> all panel planes of channels [first, last) of a group. Panel type follows tensor type.
  void (*pack[kTensorTypes])(const Frame&, const Tiling&, int64_t group, int64_t first, int64_t last,
                             const InputTransform&, const void* tensor, void* panel);
  // panel planes of channels [first, last) of a group -> tensor, where the tensor has elements. moments: see kMoments,
  // of what is written, added to; null where nobody asks.
  void (*unpack[kTensorTypes])(const Frame&, const Tiling&, int64_t group, int64_t first, int64_t last,
                               const void* panel, const OutputTransform&, void* moments, void* tensor);

  // out[i] = support[i] - base, and the largest of these as unsigned numbers.
  uint32_t (*codes)(const int32_t* support, int64_t count, int32_t base, uint16_t* out);
  // Values of units (`vector` each) to the panel's type and the order of the taps: out[t] = values[value_index[t]] for
  // t in [first, last); without an index, values[t]. False when an index is not below `units`: what is there is then
  // left out.
  bool (*gather_values[kTensorTypes])(const int32_t* value_index, int64_t first, int64_t last, int64_t units,
                                      int64_t vector, const void* values, void* out);
  // Its inverse for gradients: out[value_index[t]] = sums[t], narrowed to the tensor's type.
  bool (*scatter_values[kTensorTypes])(const int32_t* value_index, int64_t first, int64_t last, int64_t units,
                                       int64_t vector, const void* sums, void* out);

  // y[target] += sum over taps (value * x[offset + position]) for the register tile of outputs at (row, col); starts
  // from init[target channel] where init is not null.
  void (*sparse_conv[kPanelTypes][kWidthCount])(const TapRange&, const Tiling&, const Frame& x_frame,
                                                const Frame& y_frame, int64_t row, int64_t col, const void* values,
                                                const void* x, void* y, const void* init);
  // dv[tap] += sum over a tile's positions and lanes (gy[target] * x[offset + position]).
  void (*wgrad[kPanelTypes][kWidthCount])(const TapRange&, const Tiling&, const Frame& x_frame, const Frame& y_frame,
                                          const void* gy, const void* x, void* dv);

  // y = a's elements as Plane says, plus b's where b is not null, then the activation; a row of `width` elements
  // repeated `repeat` times in both directions. One plane of one image and channel.
  void (*pointwise[kTensorTypes])(const Plane& a, const Plane* b, OutputActivation activation, int64_t height,
                                  int64_t width, int64_t repeat, void* y);

  // Runs kFmaChains * iterations vector FMAs on registers: the peak that a kernel's speed is compared with.
  float (*fma)(int64_t iterations);
};

// The tables that this build has, best first. A table whose ISA the machine lacks must not be called.
#define SPARSEGAN_DECLARE(name, ...) extern const Kernels kernels_##name;
SPARSEGAN_ISAS(SPARSEGAN_DECLARE)
#undef SPARSEGAN_DECLARE

}  // namespace sparsegan
