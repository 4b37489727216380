// What the driver (conv.cpp) knows of the kernels: plain argument structs and one table of functions an ISA.
#pragma once

#include <cstdint>

namespace sparsegan {

// How a batch is cut into tiles, and tiles into groups of one tile a vector lane.
// Tile i = (image * tiles_h + row) * tiles_w + col; lane i % lanes of group i / lanes holds it.
struct Tiling {
  int64_t images = 0;
  int64_t tile_h = 1, tile_w = 1;    // outputs a tile
  int64_t tiles_h = 1, tiles_w = 1;  // tiles an image
  int64_t lanes = 1, groups = 0;
  int64_t rows = 1, cols = 1;  // outputs a register tile

  int64_t tiles() const { return images * tiles_h * tiles_w; }
};

// How one tensor maps to panel planes [plane][row][col][lane]; plane = channel * phases + phase. Element (row, col) of
// a phase's grid is `row * row_stride + col * phases_w` elements from where the phase starts.
struct Frame {
  int64_t channels = 0;
  int64_t phases_h = 1, phases_w = 1;
  int64_t height = 0, width = 0;  // elements of the tensor along each axis, all phases together
  int64_t image_stride = 0, channel_stride = 0, row_stride = 0,
          phase_stride = 0;  // phase_stride: from one row phase to the next
  int64_t images_as_rows =
      0;  // where not 0: the rows of a phase's grid are this many images, see fold_images in conv.cpp
  int64_t first_h = 0,
          first_w = 0;  // panel row and column 0, relative to the tile's own first element: <= 0 with a halo before
  int64_t rows = 1, cols = 1;  // panel rows and columns a plane: tile and halo
  int64_t size = 0;            // elements of the whole tensor

  int64_t planes() const { return channels * phases_h * phases_w; }
  int64_t plane_size(int64_t lanes) const { return rows * cols * lanes; }
  // Rows and columns of a phase's grid.
  int64_t grid_rows(int64_t phase) const {
    if (images_as_rows) return phase < height ? images_as_rows : 0;
    return (height - phase + phases_h - 1) / phases_h;
  }
  int64_t grid_cols(int64_t phase) const { return (width - phase + phases_w - 1) / phases_w; }
};

// The taps of one source block for a range of targets; see plan.h.
struct TapRange {
  const int32_t* rows;  // of this block: rows[target] .. rows[target + 1]
  const uint16_t* codes;
  const int32_t* offsets;  // code -> elements from the block's first plane
  int64_t first, last;     // targets
};

// dtype index of a tensor: 0 float32, 1 float64, 2 bfloat16. Panels and values are float64 for 1, else float32.
constexpr int kTensorTypes = 3;
constexpr int kPanelTypes = 2;
// The widest register tile, in output columns.
constexpr int64_t kMaxCols = 8;

struct Kernels {
  const char* isa;
  int64_t lanes[kPanelTypes];
  int64_t accumulators;  // vectors of outputs that a register tile may hold
  int64_t max_rows;      // the tallest register tile

  // tensor -> all panel planes of channels [first, last) of a group; zero outside the tensor. Panel type follows tensor
  // type.
  void (*pack[kTensorTypes])(const Frame&, const Tiling&, int64_t group, int64_t first, int64_t last,
                             const void* tensor, void* panel);
  // panel planes of channels [first, last) of a group -> tensor, where the tensor has elements.
  void (*unpack[kTensorTypes])(const Frame&, const Tiling&, int64_t group, int64_t first, int64_t last,
                               const void* panel, void* tensor);
  // values in tap order, widened to the panel's type: out[t] = values[order[t]], t in [first, last).
  void (*order_values[kTensorTypes])(const int32_t* order, int64_t first, int64_t last, const void* values, void* out);
  // its inverse for gradients: out[order[t]] = sums[t], narrowed to the tensor's type.
  void (*scatter_values[kTensorTypes])(const int32_t* order, int64_t first, int64_t last, const void* sums, void* out);

  // y[target] += sum over taps (value * x[offset + position]) for one strip of `tiling.rows` output rows from `row` on;
  // starts from init[target / phases] where init is not null.
  void (*gather[kPanelTypes])(const TapRange&, const Tiling&, int64_t row, const void* values, const void* x,
                              int64_t x_cols, void* y, const void* init, int64_t phases);
  // dv[tap] += sum over a tile's positions and lanes (gy[target] * x[offset + position]).
  void (*wgrad[kPanelTypes])(const TapRange&, const Tiling&, const void* gy, const void* x, int64_t x_cols, void* dv);

  // Runs accumulators * iterations vector FMAs on registers: the peak that a kernel's share is measured against.
  float (*fma)(int64_t iterations);
};

// The tables that this build has, best first. A table whose ISA the machine lacks must not be called.
extern const Kernels kernels_avx512, kernels_avx2, kernels_scalar;

}  // namespace sparsegan
