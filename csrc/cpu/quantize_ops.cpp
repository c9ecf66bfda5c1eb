// torch.ops.questtrain.hadamard_quantize, .hadamard_backward and .dequantize on CPUs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "rows.h"

namespace questtrain {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Quantized = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kElementsOfTask = 1 << 15;

cpu::Element element_of(ScalarType t){ return t==ScalarType::BFloat16?cpu::Element::bfloat16: t==ScalarType::Half?cpu::Element::half:cpu::Element::float32; }
int size_of(ScalarType t){ return t==ScalarType::Float?4:2; }

// Calls `work(row, scratch)` for each row of `width` elements, on as many threads as torch uses.
template <typename Work>
void for_each_row(int64_t rows, int64_t width, Work work) {
  const int64_t grain = std::max<int64_t>(1, kElementsOfTask / width);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(cpu::kScratch * width);
    for (int64_t row = begin; row < end; ++row) work(row, scratch.data());
  });
}

Quantized hadamard_quantize(Tensor x, int64_t levels, double alpha, int64_t block, bool packed,
                            std::optional<double> trust) {
  const int64_t rows = x.size(0), width = x.size(1);
  const int bits = packed ? (levels==2?1:levels<=4?2:4) : 8;
  const auto code_type = packed ? ScalarType::Byte : ScalarType::Char;
  Tensor codes = torch::stable::new_empty(x, {rows, width * bits / 8}, code_type);
  Tensor scales = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  Tensor sums = torch::stable::new_empty(x, {rows}, ScalarType::Int);
  Tensor mask = torch::stable::new_empty(x, {rows, trust ? width / 8 : 0}, ScalarType::Byte);
  const cpu::RowFormat format{int(width), int(block), float(alpha), float(trust.value_or(0.0)), int(levels), levels==256, bits};
  const auto type = element_of(x.scalar_type());
  const auto* from = static_cast<const char*>(x.data_ptr());
  const int64_t stride = width * size_of(x.scalar_type());
  auto* to = static_cast<char*>(codes.data_ptr());
  auto* scale = static_cast<float*>(scales.data_ptr());
  auto* sum = static_cast<int32_t*>(sums.data_ptr());
  auto* bit = trust ? static_cast<uint8_t*>(mask.data_ptr()) : nullptr;
  for_each_row(rows, width, [&](int64_t row, float* scratch) {
    cpu::quantize_row(from + row * stride, type, format, {to + row * width * bits / 8, scale + row, sum + row, bit ? bit + row * width / 8 : nullptr}, scratch);
  });
  return {codes, scales, sums, mask};
}

Tensor hadamard_backward(Tensor grad, Tensor mask, int64_t block) {
  const int64_t rows = grad.size(0), width = grad.size(1);
  Tensor result = torch::stable::new_empty(grad, {rows, width});
  const auto type = element_of(grad.scalar_type());
  const int64_t stride = width * size_of(grad.scalar_type());
  const auto* from = static_cast<const char*>(grad.data_ptr());
  auto* to = static_cast<char*>(result.data_ptr());
  const auto* bit = mask.size(1) ? static_cast<const uint8_t*>(mask.data_ptr()) : nullptr;
  for_each_row(rows, width, [&](int64_t row, float* scratch) {
    cpu::backward_row(from + row*stride, type, bit ? bit + row*width/8 : nullptr, int(width), int(block), to + row*stride, scratch);
  });
  return result;
}

Tensor dequantize(Tensor codes, Tensor scales, int64_t levels, ScalarType dtype) {
  const int64_t rows = codes.size(0), width = codes.size(1);
  Tensor result = torch::stable::new_empty(codes, {rows, width}, dtype);
  const auto type = element_of(dtype);
  const int64_t stride = width * size_of(dtype);
  const auto* from = static_cast<const int8_t*>(codes.data_ptr());
  const auto* scale = static_cast<const float*>(scales.data_ptr());
  auto* to = static_cast<char*>(result.data_ptr());
  for_each_row(rows, width, [&](int64_t row, float* scratch) {
    cpu::dequantize_row(from + row*width, scale[row], levels==256, int(width), type, to + row*stride, scratch);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CPU, m) {
  m.impl("hadamard_quantize", TORCH_BOX(&hadamard_quantize));
  m.impl("hadamard_backward", TORCH_BOX(&hadamard_backward));
  m.impl("dequantize", TORCH_BOX(&dequantize));
}
}  // namespace questtrain
