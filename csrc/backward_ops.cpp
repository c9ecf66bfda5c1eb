// torch.ops.questtrain.*_backward and .dequantize on CUDA: checks, outputs, launches.
#include <optional>
#include <tuple>

#include "backward.h"
#include "dequantize.h"
#include "quantize_arguments.h"

namespace questtrain {
namespace {

constexpr int64_t kMostElements = int64_t{8} << 32;  // chunks of 8 are counted in 32 bits

void check_size(int64_t rows, int64_t width, const char* op) {
  STD_TORCH_CHECK(rows * width < kMostElements, op, ": ", rows, " rows of the width ", width,
                  " exceed 2^35 elements");
}

// What all backwards share, from a gradient of rotated rows and the bits that say where it passes.
BackwardArguments masked_arguments(const Tensor& grad, const Tensor& mask, int64_t width,
                                   int64_t block, const char* op) {
  check_two_dimensional(grad, op, "grad");
  const int64_t rows = grad.size(0);
  check_matrix(grad, grad, rows, width, op, "grad");
  check_floating(grad.scalar_type(), op, "grad");
  check_block(width, block, op);
  check_size(rows, width, op);
  const bool all_pass = mask.dim() == 2 && mask.size(1) == 0;
  check_two_dimensional(mask, op, "mask");
  check_matrix(mask, grad, rows, all_pass ? 0 : width / 8, op, "mask");
  check_dtype(mask, ScalarType::Byte, op, "mask");
  BackwardArguments arguments{};
  arguments.grad = grad.data_ptr();
  arguments.mask = all_pass ? nullptr : static_cast<const uint8_t*>(mask.data_ptr());
  arguments.rows = rows;
  arguments.width = static_cast<int>(width);
  arguments.block = static_cast<int>(block);
  arguments.inverse_width = 1.f / width;
  arguments.orthonormal = 1.f / std::sqrt(static_cast<float>(block));
  return arguments;
}

void launch(Origin origin, const BackwardArguments& arguments, const Tensor& grad, const char* op) {
  const cudaStream_t stream = current_stream(grad);
  switch (grad.scalar_type()) {
    case ScalarType::BFloat16: check_cuda(backward_bfloat16(origin, arguments, stream), op); break;
    case ScalarType::Half: check_cuda(backward_half(origin, arguments, stream), op); break;
    default: check_cuda(backward_float(origin, arguments, stream), op);
  }
}

Tensor hadamard_backward(Tensor grad, Tensor mask, int64_t block) {
  const char* op = "hadamard_backward";
  check_two_dimensional(grad, op, "grad");
  BackwardArguments arguments = masked_arguments(grad, mask, grad.size(1), block, op);
  Tensor result = torch::stable::new_empty(grad, {grad.size(0), grad.size(1)});
  if (grad.size(0) == 0) return result;

  arguments.result = result.data_ptr();
  const DeviceGuard guard(grad);
  launch(Origin::plain, arguments, grad, op);
  return result;
}

Tensor swiglu_backward(Tensor grad, Tensor mask, Tensor gate_up, int64_t block) {
  const char* op = "swiglu_backward";
  const int64_t width = swiglu_width(gate_up, op);
  BackwardArguments arguments = masked_arguments(grad, mask, width, block, op);
  check_matrix(gate_up, grad, grad.size(0), 2 * width, op, "gate_up");
  check_dtype(gate_up, grad.scalar_type(), op, "gate_up");
  Tensor result = torch::stable::new_empty(gate_up, {gate_up.size(0), gate_up.size(1)});
  if (grad.size(0) == 0) return result;

  arguments.x = gate_up.data_ptr();
  arguments.result = result.data_ptr();
  const DeviceGuard guard(grad);
  launch(Origin::swiglu, arguments, grad, op);
  return result;
}

std::tuple<Tensor, Tensor> rmsnorm_backward(Tensor grad, Tensor mask, Tensor x, Tensor weight,
                                            double epsilon, int64_t block,
                                            std::optional<Tensor> residual_grad) {
  const char* op = "rmsnorm_backward";
  check_operand(x, op, "x");
  const QuantizeArguments norm = norm_arguments(x, weight, epsilon, op, "weight");
  const int64_t rows = x.size(0), width = x.size(1);
  BackwardArguments arguments = masked_arguments(grad, mask, width, block, op);
  check_matrix(x, grad, grad.size(0), width, op, "x");
  check_dtype(x, grad.scalar_type(), op, "x");
  STD_TORCH_CHECK(width <= kLargestNormWidth, op, ": the width ", width, " exceeds ",
                  kLargestNormWidth);
  if (residual_grad) {
    check_matrix(*residual_grad, grad, rows, width, op, "residual_grad");
    check_dtype(*residual_grad, x.scalar_type(), op, "residual_grad");
    arguments.residual_grad = residual_grad->data_ptr();
  }
  Tensor grad_x = torch::stable::new_empty(x, {rows, width});
  Tensor grad_weight = torch::stable::new_empty(x, {width}, ScalarType::Float);
  if (rows == 0) return {grad_x, torch::stable::zero_(grad_weight)};

  const DeviceGuard guard(grad);
  arguments.grid = norm_grid(rows, arguments.width);
  Tensor of_blocks =
      torch::stable::new_empty(x, {arguments.grid.blocks, width}, ScalarType::Float);
  arguments.x = x.data_ptr();
  arguments.weight = norm.weight;
  arguments.weight_is_float = norm.weight_is_float;
  arguments.epsilon = norm.epsilon;
  arguments.result = grad_x.data_ptr();
  arguments.weight_grads = static_cast<float*>(of_blocks.data_ptr());
  launch(Origin::rmsnorm, arguments, grad, op);
  check_cuda(sum_weight_grads(arguments.weight_grads, static_cast<float*>(grad_weight.data_ptr()),
                              arguments.grid.blocks, arguments.width, current_stream(grad)),
             op);
  return {grad_x, grad_weight};
}

Tensor dequantize_codes(Tensor codes, Tensor scales, int64_t levels, ScalarType dtype) {
  const char* op = "dequantize";
  check_floating(dtype, op, "dtype");
  check_two_dimensional(codes, op, "codes");
  check_layout(codes, codes, op, "codes");
  const bool packed = codes.scalar_type() == ScalarType::Byte;
  if (!packed) check_dtype(codes, ScalarType::Char, op, "codes");
  const int bits = packed ? container_bits(levels, op) : 8;
  const int64_t rows = codes.size(0), width = codes.size(1) * 8 / bits;
  STD_TORCH_CHECK(width > 0 && width % 32 == 0, op, ": the width ", width,
                  " must be a multiple of 32");
  check_size(rows, width, op);
  check_vector(scales, codes, rows, op, "scales");
  check_dtype(scales, ScalarType::Float, op, "scales");
  Tensor values = torch::stable::new_empty(codes, {rows, width}, dtype);
  if (rows == 0) return values;

  const bool doubled = packed || levels == kOffsetLevels;
  DequantizeArguments arguments{};
  arguments.codes = codes.data_ptr();
  arguments.scales = static_cast<const float*>(scales.data_ptr());
  arguments.values = values.data_ptr();
  arguments.rows = rows;
  arguments.width = static_cast<int>(width);
  arguments.bits = bits;
  arguments.factor = doubled ? 2 : 1;
  arguments.offset = packed ? 1 - static_cast<int>(levels) : doubled ? 1 : 0;
  arguments.output = output_of(dtype);
  const DeviceGuard guard(codes);
  check_cuda(dequantize(arguments, current_stream(codes)), op);
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("hadamard_backward", TORCH_BOX(&hadamard_backward));
  m.impl("rmsnorm_backward", TORCH_BOX(&rmsnorm_backward));
  m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
  m.impl("dequantize", TORCH_BOX(&dequantize_codes));
}

}  // namespace questtrain
