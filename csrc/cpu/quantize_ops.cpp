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

using Quantized = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Quantized hadamard_quantize(Tensor x, int64_t levels, double alpha, int64_t block, bool packed,
                            std::optional<double> trust) {
  const Check check("hadamard_quantize", x);
  const void* const from = check.matrix("x", x, kAny, kAny, kFloating);
  const int64_t rows = x.size(0), width = x.size(1);
  const int bits = check.format(width, levels, kOffsetLevels, alpha, block, packed);
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
  const Check check("hadamard_backward", grad);
  const MaskedGradient masked = masked_gradient(check, grad, mask, kAny, block);
  const int64_t rows = masked.rows, width = masked.width, mask_bytes = width / 8;
  Tensor result = torch::stable::new_empty(grad, {rows, width});

  void* const to = result.data_ptr();
  const ScalarType type = grad.scalar_type();
  const Kernels& path = kernels();
  for_each_row(rows, width, [&](int64_t row, float* values, uint8_t*) {
    load_floats(masked.grad, row * width, width, type, values);
    path.rotate_back(values, width, masked.mask ? masked.mask + row * mask_bytes : nullptr,
                     static_cast<int>(block));
    store_floats(values, static_cast<int>(width), to, row * width, type);
  });
  return result;
}

Tensor dequantize(Tensor codes, Tensor scales, int64_t levels, ScalarType dtype) {
  const Check check("dequantize", codes);
  check.output(dtype);
  const CodeRows found = codes_of(check, codes, levels);
  const int bits = found.bits;
  const int64_t rows = codes.size(0), bytes = codes.size(1), width = found.width;
  const float* const scale = check.vector<float>("scales", scales, rows);
  Tensor result = torch::stable::new_empty(codes, {rows, width}, dtype);

  const auto* const from = static_cast<const uint8_t*>(found.start);
  void* const to = result.data_ptr();
  const Kernels& path = kernels();
  for_each_row(rows, width, [&](int64_t row, float* values, uint8_t* unpacked) {
    const uint8_t* of_row = from + row * bytes;
    if (bits < 8) {
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
