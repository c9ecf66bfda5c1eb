// What ops on every device take, checked: where tensors start, and their sizes.
#pragma once

#include "checks.h"

namespace questtrain {

// Rows of int8 or packed codes: where they start, the bits of a code, the codes of a row.
struct CodeRows {
  void* start;
  int bits;
  int64_t width;
};

inline CodeRows packed_codes(const Check& check, const Tensor& packed, int64_t levels) {
  void* start = check.matrix<uint8_t>("packed", packed, kAny, kAny);
  const int bits = check.packed_levels("levels", levels);
  const int64_t width = packed.size(1) * 8 / bits;
  check.multiple("the unpacked width", width, 32);
  return {start, bits, width};
}

// Either kind, by dtype.
inline CodeRows codes_of(const Check& check, const Tensor& codes, int64_t levels) {
  if (codes.scalar_type() == ScalarType::Byte) return packed_codes(check, codes, levels);
  void* start = check.matrix<int8_t>("codes", codes, kAny, kAny);
  check.multiple("the width", codes.size(1), 32);
  return {start, 8, codes.size(1)};
}

// x·wᵀ of integer codes.
struct ProductOperands {
  const void *x, *weight;
  const float *x_scales, *weight_scales;
  int64_t rows, columns, width;
};

// What a kernel asks of the width and of the weight's rows.
struct Multiples {
  int64_t width, columns;
};

// x of elements `X`, which hold `x_codes` codes each, a weight of elements `W`, whose codes take
// `weight_bits`, a scale a row of either, and y's dtype.
template <class X, class W>
ProductOperands product_operands(const Check& check, const Tensor& x, const Tensor& x_scales,
                                 int x_codes, const Tensor& weight, const Tensor& weight_scales,
                                 int weight_bits, Multiples multiples, ScalarType dtype) {
  ProductOperands operands{};
  operands.x = check.matrix<X>("x", x, kAny, kAny);
  operands.rows = x.size(0);
  operands.width = x.size(1) * x_codes;
  operands.weight =
      check.matrix<W>("weight", weight, kAny, operands.width * weight_bits / 8);
  operands.columns = weight.size(0);
  check.multiple("the width", operands.width, multiples.width);
  check.multiple("the weight's rows", operands.columns, multiples.columns);
  operands.x_scales = check.vector<float>("x_scales", x_scales, operands.rows);
  operands.weight_scales = check.vector<float>("weight_scales", weight_scales, operands.columns);
  check.output(dtype);
  return operands;
}

// Chunks of 8 are counted in 32 bits.
constexpr int64_t kMostElements = int64_t{8} << 32;

inline void check_size(const Check& check, int64_t rows, int64_t width) {
  if (rows * width >= kMostElements)
    check.fail(rows, " rows of the width ", width, " exceed 2^35 elements");
}

// A gradient of rotated rows, and the bits that say where it passes; null: everywhere.
struct MaskedGradient {
  const void* grad;
  const uint8_t* mask;
  int64_t rows, width;
};

inline MaskedGradient masked_gradient(const Check& check, const Tensor& grad, const Tensor& mask,
                                      int64_t width, int64_t block) {
  const void* start = check.matrix("grad", grad, kAny, width, kFloating);
  check.block(grad.size(1), block);
  const bool all_pass = mask.dim() == 2 && mask.size(1) == 0;
  const uint8_t* bits =
      check.matrix<uint8_t>("mask", mask, grad.size(0), all_pass ? 0 : grad.size(1) / 8);
  return {start, all_pass ? nullptr : bits, grad.size(0), grad.size(1)};
}

}  // namespace questtrain
