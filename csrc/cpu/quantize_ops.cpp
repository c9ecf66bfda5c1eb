// torch.ops.questtrain.hadamard_quantize, .hadamard_backward and .dequantize on the CPU: what a
// training step does to the operands of its products and to their gradients.
#include <optional>
#include <tuple>

#include "products.h"

namespace questtrain::cpu {
namespace {

constexpr int64_t kWorkOfAnElement = 16;

// work(row, values, bytes) for each row of `width` elements, with room for as many floats and bytes.
template <typename Work>
void for_each_row(int64_t rows, int64_t width, const Work& work) {
  spread(rows, kWorkOfAnElement * width, [&](int64_t begin, int64_t end) {
    const Scratch<float> values(width);
    const Scratch<uint8_t> bytes(width);
    for (int64_t row = begin; row < end; ++row) work(row, values.get(), bytes.get());
  });
}

void check_rows(const Tensor& x, int64_t block, const char* op, const char* name) {
  check_two_dimensional(x, op, name);
  check_floating(x.scalar_type(), op, name);
  check_layout(x, op, name);
  check_block(x.size(1), block, op);
}

using Quantized = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Quantized hadamard_quantize(Tensor x, int64_t levels, double alpha, int64_t block, bool packed,
                            std::optional<double> trust) {
  const char* op = "hadamard_quantize";
  check_rows(x, block, op, "x");
  check_levels(levels, kOffsetLevels, op);
  check_scaled_rows(x.size(1), alpha, op);
  const int64_t rows = x.size(0), width = x.size(1);
  const int bits = packed ? container_bits(levels, op) : 8;
  const int64_t bytes = width * bits / 8, mask_bytes = trust ? width / 8 : 0;
  const auto code_type = packed ? ScalarType::Byte : ScalarType::Char;
  Tensor codes = torch::stable::new_empty(x, {rows, bytes}, code_type);
  Tensor scales = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  Tensor sums = torch::stable::new_empty(x, {rows}, ScalarType::Int);
  Tensor mask = torch::stable::new_empty(x, {rows, mask_bytes}, ScalarType::Byte);

  const RowFormat format{width,
                         static_cast<int>(block),
                         static_cast<int>(levels),
                         bits,
                         levels == kOffsetLevels,
                         static_cast<float>(alpha),
                         static_cast<float>(trust.value_or(0.0))};
  const void* const from = x.data_ptr();
  const ScalarType type = x.scalar_type();
  auto* const to = static_cast<uint8_t*>(codes.data_ptr());
  auto* const scale = static_cast<float*>(scales.data_ptr());
  auto* const sum = static_cast<int32_t*>(sums.data_ptr());
  auto* const trusted = trust ? static_cast<uint8_t*>(mask.data_ptr()) : nullptr;
  const Kernels& path = kernels();
  for_each_row(rows, width, [&](int64_t row, float* values, uint8_t* indices) {
    load_floats(from, row * width, width, type, values);
    path.quantize_row(values, format, indices,
                      {to + row * bytes, scale + row, sum + row,
                       trusted ? trusted + row * mask_bytes : nullptr});
  });
  return {codes, scales, sums, mask};
}

Tensor hadamard_backward(Tensor grad, Tensor mask, int64_t block) {
  const char* op = "hadamard_backward";
  check_rows(grad, block, op, "grad");
  const int64_t rows = grad.size(0), width = grad.size(1);
  check_two_dimensional(mask, op, "mask");
  const int64_t mask_bytes = mask.size(1) == 0 ? 0 : width / 8;
  check_matrix(mask, rows, mask_bytes, ScalarType::Byte, op, "mask");
  Tensor result = torch::stable::new_empty(grad, {rows, width});

  const void* const from = grad.data_ptr();
  void* const to = result.data_ptr();
  const ScalarType type = grad.scalar_type();
  const auto* const passes = mask_bytes ? static_cast<const uint8_t*>(mask.data_ptr()) : nullptr;
  const Kernels& path = kernels();
  for_each_row(rows, width, [&](int64_t row, float* values, uint8_t*) {
    load_floats(from, row * width, width, type, values);
    path.rotate_back(values, width, passes ? passes + row * mask_bytes : nullptr,
                     static_cast<int>(block));
    store_floats(values, static_cast<int>(width), to, row * width, type);
  });
  return result;
}

Tensor dequantize(Tensor codes, Tensor scales, int64_t levels, ScalarType dtype) {
  const char* op = "dequantize";
  check_floating(dtype, op, "dtype");
  check_two_dimensional(codes, op, "codes");
  const int64_t rows = codes.size(0);
  const bool packed = codes.scalar_type() == ScalarType::Byte;
  const int bits = packed ? container_bits(levels, op) : 8;
  const int64_t bytes = codes.size(1), width = bytes * 8 / bits;
  check_matrix(codes, rows, bytes, packed ? ScalarType::Byte : ScalarType::Char, op, "codes");
  check_multiple(width, 32, op, packed ? "the unpacked width" : "the width");
  check_vector(scales, rows, ScalarType::Float, op, "scales");
  Tensor result = torch::stable::new_empty(codes, {rows, width}, dtype);

  const auto* const from = static_cast<const uint8_t*>(codes.data_ptr());
  const auto* const scale = static_cast<const float*>(scales.data_ptr());
  void* const to = result.data_ptr();
  const Kernels& path = kernels();
  for_each_row(rows, width, [&](int64_t row, float* values, uint8_t* unpacked) {
    const uint8_t* of_row = from + row * bytes;
    if (packed) {
      path.unpack(of_row, bytes, bits, unpacked);
      path.centre(unpacked, width, static_cast<int>(levels));
      of_row = unpacked;
    }
    path.dequantize_row(reinterpret_cast<const int8_t*>(of_row), width, scale[row],
                        levels == kOffsetLevels, values);
    store_floats(values, static_cast<int>(width), to, row * width, dtype);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CPU, m) {
  m.impl("hadamard_quantize", TORCH_BOX(&hadamard_quantize));
  m.impl("hadamard_backward", TORCH_BOX(&hadamard_backward));
  m.impl("dequantize", TORCH_BOX(&dequantize));
}

}  // namespace questtrain::cpu
