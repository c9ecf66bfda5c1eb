// The path that every CPU has: plain C++, vectorized as far as the compiler's default target allows.
#include "kernels.h"

namespace {

constexpr int kLanes = 4, kFewRows = 4, kOuterRows = 4;
typedef float Floats __attribute__((vector_size(4 * kLanes)));

template <int bits>
inline void unpack_bytes(const uint8_t* packed, uint8_t* indices) {
  constexpr int kInByte = 8 / bits;
  for (int i = 0; i < 16; ++i)
    for (int place = 0; place < kInByte; ++place)
      indices[kInByte * i + place] = (packed[i] >> (bits * place)) & ((1 << bits) - 1);
}

inline Floats to_floats(const int8_t* codes) {
  Floats values;
  for (int i = 0; i < kLanes; ++i) values[i] = codes[i];
  return values;
}

inline int rotate_small(float* row, int64_t width, int, float factor) {
  for (int64_t i = 0; i < width; ++i) row[i] *= factor;
  return 1;
}

void transpose(const questtrain::cpu::FloatTile& tile) {
  for (int64_t k = 0; k < tile.width; ++k)
    for (int c = 0; c < questtrain::cpu::kPanel; ++c)
      tile.panel_floats[k * questtrain::cpu::kPanel + c] = tile.panel[c * tile.width + k];
}

}  // namespace

#include "kernels.inc"
#include "rows.inc"

namespace {

void hold_int8(const int8_t* codes, int64_t width, void* panel) {
  __builtin_memcpy(panel, codes, width);
}

// Unsigned, because a sum may pass 2^31 on its way to a result that does not.
template <typename Code>
void multiply(const IntegerTile& tile, int32_t* sums) {
  for (int64_t m = 0; m < tile.rows; ++m) {
    const int8_t* x = tile.x + m * tile.width;
    for (int c = 0; c < tile.columns; ++c) {
      const Code* codes = static_cast<const Code*>(tile.panel) + c * tile.stride;
      uint32_t sum = 0;
      for (int64_t k = 0; k < tile.width; ++k)
        sum += static_cast<uint32_t>(static_cast<int32_t>(codes[k]) * x[k]);
      sums[m * kPanel + c] = static_cast<int32_t>(sum);
    }
  }
}

}  // namespace

namespace questtrain::cpu {

const Kernels kPortable = {
    "portable", unpack, centre, examine, 1, 0, hold_int8, multiply<uint8_t>, multiply<int8_t>,
    scale, rotate, multiply_floats, quantize_row, rotate_back, dequantize_row};

}  // namespace questtrain::cpu
