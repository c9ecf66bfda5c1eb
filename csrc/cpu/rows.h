// Rows of an operand on the CPU: quantized, taken back through the rotation, made into values.
//
// The arithmetic is that of questtrain/kernels/reference_quantize.py and reference_training.py, in
// fp32; only the order of the rotation's and the mean square's additions is another. It is the same
// on every instruction set: nothing is contracted or reassociated (see csrc/build_cpu.py's flags).
#pragma once

#include <cstdint>

namespace questtrain::cpu {

enum class Element { bfloat16, half, float32 };

constexpr int kScratch = 2;

// How a row is quantized. `offset`: int8 codes are q - levels/2 instead of 2q - (levels - 1).
struct RowFormat {
  int width;
  int block;
  float alpha;
  float trust;
  int levels;
  bool offset;
  int bits;  // of a code: 8, or those of a packed one
};

// What a row becomes; `mask` may be null.
struct QuantizedRow {
  void* codes;
  float* scale;
  int32_t* sum;
  uint8_t* mask;
};

// `scratch` holds `kScratch · width` floats.
void quantize_row(const void* x, Element type, const RowFormat& format, const QuantizedRow& out,
                  float* scratch);

// (M ⊙ grad)·H; `mask` may be null: all of it passes. `out` may be `grad`.
void backward_row(const void* grad, Element type, const uint8_t* mask, int width, int block,
                  void* out, float* scratch);

// codes · scale, or (2c + 1) · scale for codes of 256 levels.
void dequantize_row(const int8_t* codes, float scale, bool offset, int width, Element type,
                    void* out, float* scratch);

}  // namespace questtrain::cpu
