// torch.ops.questtrain.*_quantize on CUDA: checks, outputs, launch.
#include <optional>
#include <tuple>

#include "quantize_arguments.h"

namespace questtrain {
namespace {

using Quantized = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using HiddenAndQuantized = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Quantized quantize(Operand operand, const Tensor& x, int64_t width, QuantizeArguments arguments,
                   const Format& format, const char* op) {
  check_format(format, width, op);
  const int bits = format.packed ? container_bits(format.levels, op) : 8;
  const int64_t rows = x.size(0);
  const auto code_type = format.packed ? ScalarType::Byte : ScalarType::Char;
  Tensor codes = torch::stable::new_empty(x, {rows, width * bits / 8}, code_type);
  Tensor scales = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  Tensor sums = torch::stable::new_empty(x, {rows}, ScalarType::Int);
  Tensor mask =
      torch::stable::new_empty(x, {rows, format.trust ? width / 8 : 0}, ScalarType::Byte);
  if (rows == 0) return {codes, scales, sums, mask};

  arguments.x = x.data_ptr();
  arguments.codes = codes.data_ptr();
  arguments.scales = static_cast<float*>(scales.data_ptr());
  arguments.sums = static_cast<int32_t*>(sums.data_ptr());
  arguments.mask = format.trust ? static_cast<uint8_t*>(mask.data_ptr()) : nullptr;
  arguments.container_bits = bits;
  set_format(arguments, format, rows, width);
  const DeviceGuard guard(x);
  const cudaStream_t stream = current_stream(x);
  switch (x.scalar_type()) {
    case ScalarType::BFloat16: check_cuda(quantize_bfloat16(operand, arguments, stream), op); break;
    case ScalarType::Half: check_cuda(quantize_half(operand, arguments, stream), op); break;
    default: check_cuda(quantize_float(operand, arguments, stream), op);
  }
  return {codes, scales, sums, mask};
}

Quantized hadamard_quantize(Tensor x, int64_t levels, double alpha, int64_t block, bool packed,
                            std::optional<double> trust) {
  const char* op = "hadamard_quantize";
  check_operand(x, op, "x");
  return quantize(Operand::plain, x, x.size(1), {}, {levels, alpha, block, packed, trust}, op);
}

Quantized rmsnorm_quantize(Tensor x, Tensor weight, double epsilon, int64_t levels, double alpha,
                           int64_t block, bool packed, std::optional<double> trust) {
  const char* op = "rmsnorm_quantize";
  check_operand(x, op, "x");
  return quantize(Operand::rmsnorm, x, x.size(1), norm_arguments(x, weight, epsilon, op, "weight"),
                  {levels, alpha, block, packed, trust}, op);
}

HiddenAndQuantized add_rmsnorm_quantize(Tensor x, Tensor residual, Tensor weight, double epsilon,
                                        int64_t levels, double alpha, int64_t block, bool packed,
                                        std::optional<double> trust) {
  const char* op = "add_rmsnorm_quantize";
  check_operand(x, op, "x");
  check_residual(residual, x, op);
  QuantizeArguments arguments = norm_arguments(x, weight, epsilon, op, "weight");
  Tensor hidden = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  arguments.residual = residual.data_ptr();
  arguments.hidden = hidden.data_ptr();
  auto [codes, scales, sums, mask] = quantize(Operand::add_rmsnorm, x, x.size(1), arguments,
                                              {levels, alpha, block, packed, trust}, op);
  return {hidden, codes, scales, sums, mask};
}

Quantized swiglu_quantize(Tensor gate_up, int64_t levels, double alpha, int64_t block, bool packed,
                          std::optional<double> trust) {
  const char* op = "swiglu_quantize";
  return quantize(Operand::swiglu, gate_up, swiglu_width(gate_up, op), {},
                  {levels, alpha, block, packed, trust}, op);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("hadamard_quantize", TORCH_BOX(&hadamard_quantize));
  m.impl("rmsnorm_quantize", TORCH_BOX(&rmsnorm_quantize));
  m.impl("add_rmsnorm_quantize", TORCH_BOX(&add_rmsnorm_quantize));
  m.impl("swiglu_quantize", TORCH_BOX(&swiglu_quantize));
}

}  // namespace questtrain
