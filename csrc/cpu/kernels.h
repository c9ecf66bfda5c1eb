// What a CPU path is made of: the loops over one panel of a weight, compiled once a path
// (`kernels_*.cpp`, of which the file's name says for which instructions) and chosen at run time.
#pragma once

#include <cstdint>

namespace questtrain::cpu {

// Rows of a weight, so columns of y, that are prepared together and stay in the cache while all
// rows of x are multiplied with them.
constexpr int kPanel = 16;

// int8 codes x [rows, width] against one panel; `width` is a multiple of 16.
struct IntegerTile {
  const void* panel;     // [columns, stride] as `hold_codes` or `hold_int8` made it
  const int8_t* x;       // [rows, width]
  int64_t rows, width;
  int64_t stride;        // elements of the panel from one of its rows to the next
  int columns;           // a multiple of 4, at most kPanel
  int64_t most;          // no |panel element · x| exceeds it
};

// Values x [rows, width] in fp32 against one panel.
struct FloatTile {
  const int8_t* panel;   // [kPanel, width] of the weight's integers
  const float* x;        // [rows, x_stride]
  int64_t rows, width, x_stride;
  float* panel_floats;   // room for [width, kPanel]
};

// How a row of `width` elements is quantized: rotated in blocks of `block`, scaled to `alpha` times
// its rms, to one of `levels` codes of `bits`; `offset`: int8 codes q - 128 instead of 2q - (levels-1).
struct RowFormat {
  int64_t width;
  int block, levels, bits;
  bool offset;
  float alpha, trust;
};

// What it becomes; `mask` may be null.
struct QuantizedRow {
  uint8_t* codes;
  float* scale;
  int32_t* sum;
  uint8_t* mask;
};

struct Kernels {
  const char* name;

  // Level indices 0 … 2^bits - 1 of `count` packed bytes, the first lowest.
  void (*unpack)(const uint8_t* packed, int64_t count, int bits, uint8_t* indices);
  // The integers 2·index - (levels - 1) in their place.
  void (*centre)(uint8_t* indices, int64_t count, int levels);
  // Σ over a row of x, and its largest magnitude.
  void (*examine)(const int8_t* x, int64_t width, int32_t* sum, int32_t* largest);

  // Bytes an element of a panel of int8 codes, and what was added to each code.
  int int8_bytes, int8_shift;
  void (*hold_int8)(const int8_t* codes, int64_t width, void* panel);

  // sums [rows, kPanel] of panel elements (level indices, below 16) times x, modulo 2^32.
  void (*multiply_codes)(const IntegerTile&, int32_t* sums);
  // The same of a panel that hold_int8 made.
  void (*multiply_int8)(const IntegerTile&, int32_t* sums);
  // (factor·sum + row_term + column_terms[c]) · x_scale · weight_scales[c], in float64, to fp32.
  void (*scale)(const int32_t* sums, int columns, int32_t factor, int32_t row_term,
                const int32_t* column_terms, double x_scale, const float* weight_scales, float* y);

  // Each `block` of a row times the orthonormal Hadamard matrix, in place; block is a power of 2.
  void (*rotate)(float* row, int64_t width, int block);
  // y [rows, kPanel] = x times the panel's integers, in fp32.
  void (*multiply_floats)(const FloatTile&, float* y);

  // A row of floats, which is used up; `indices` is room for `width` bytes.
  void (*quantize_row)(float* row, const RowFormat&, uint8_t* indices, const QuantizedRow&);
  // (M ⊙ row)·H in place; a null mask lets all pass.
  void (*rotate_back)(float* row, int64_t width, const uint8_t* mask, int block);
  // code · scale, or (2·code + 1) · scale with `offset`.
  void (*dequantize_row)(const int8_t* codes, int64_t width, float scale, bool offset,
                         float* values);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512Vnni;
#endif

// The best path that this CPU has and the cap allows.
const Kernels& kernels();

}  // namespace questtrain::cpu
