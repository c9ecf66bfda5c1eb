// torch.ops.questtrain.*_quantize on CUDA: checks, outputs, launch.
#include <cmath>
#include <optional>
#include <tuple>

#include "quantize.h"
#include "stable.h"

namespace questtrain {
namespace {

using Quantized = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using HiddenAndQuantized = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// How to quantize: the arguments that all forms share.
struct Format {
  int64_t levels;
  double alpha;
  int64_t block;
  bool packed;
  std::optional<double> trust;
};

void check_format(const Format& format, int64_t width, const char* op) {
  const int64_t n = format.levels, b = format.block;
  const bool power_of_two = n >= 2 && n <= 128 && (n & (n - 1)) == 0;
  STD_TORCH_CHECK(power_of_two || n == 3, op, ": levels must be 2, 3, 4, 8, 16, 32, 64 or 128, not ",
                  n);
  STD_TORCH_CHECK(b == 1 || (b >= 16 && b <= 256 && (b & (b - 1)) == 0), op,
                  ": block must be 1, 16, 32, 64, 128 or 256, not ", b);
  STD_TORCH_CHECK(width > 0 && width % 32 == 0 && width % b == 0, op, ": the width ", width,
                  " must be a multiple of 32 and of the block ", b);
  STD_TORCH_CHECK(width <= kLargestWidth, op, ": the width ", width, " exceeds ", kLargestWidth);
  STD_TORCH_CHECK(format.alpha > 0, op, ": alpha must be positive, not ", format.alpha);
}

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
  arguments.rows = rows;
  arguments.width = static_cast<int>(width);
  arguments.levels = static_cast<int>(format.levels);
  arguments.block = static_cast<int>(format.block);
  arguments.container_bits = bits;
  arguments.alpha = static_cast<float>(format.alpha);
  arguments.trust = static_cast<float>(format.trust.value_or(0.0));
  arguments.steps = static_cast<float>(format.levels - 1);
  arguments.inverse_width = 1.f / width;
  arguments.inverse_steps = 1.f / (format.levels - 1);
  arguments.orthonormal = 1.f / std::sqrt(static_cast<float>(format.block));
  const DeviceGuard guard(x);
  const cudaStream_t stream = current_stream(x);
  switch (x.scalar_type()) {
    case ScalarType::BFloat16: check_cuda(quantize_bfloat16(operand, arguments, stream), op); break;
    case ScalarType::Half: check_cuda(quantize_half(operand, arguments, stream), op); break;
    default: check_cuda(quantize_float(operand, arguments, stream), op);
  }
  return {codes, scales, sums, mask};
}

void check_operand(const Tensor& x, const char* op, const char* name) {
  check_two_dimensional(x, op, name);
  check_floating(x.scalar_type(), op, name);
  check_layout(x, x, op, name);
}

QuantizeArguments norm_arguments(const Tensor& x, const Tensor& weight, double epsilon,
                                 const char* op) {
  check_vector(weight, x, x.size(1), op, "weight");
  const bool is_float = weight.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(is_float || weight.scalar_type() == x.scalar_type(), op,
                  ": weight must be float32 or of x's dtype ", name_of(x.scalar_type()), ", not ",
                  name_of(weight.scalar_type()));
  QuantizeArguments arguments{};
  arguments.weight = weight.data_ptr();
  arguments.weight_is_float = is_float;
  arguments.epsilon = static_cast<float>(epsilon);
  return arguments;
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
  return quantize(Operand::rmsnorm, x, x.size(1), norm_arguments(x, weight, epsilon, op),
                  {levels, alpha, block, packed, trust}, op);
}

HiddenAndQuantized add_rmsnorm_quantize(Tensor x, Tensor residual, Tensor weight, double epsilon,
                                        int64_t levels, double alpha, int64_t block, bool packed,
                                        std::optional<double> trust) {
  const char* op = "add_rmsnorm_quantize";
  check_operand(x, op, "x");
  check_matrix(residual, x, x.size(0), x.size(1), op, "residual");
  check_dtype(residual, x.scalar_type(), op, "residual");
  QuantizeArguments arguments = norm_arguments(x, weight, epsilon, op);
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
  check_operand(gate_up, op, "gate_up");
  STD_TORCH_CHECK(gate_up.size(1) % 2 == 0, op, ": gate_up must be [rows, 2·width], not ",
                  shape_of(gate_up));
  return quantize(Operand::swiglu, gate_up, gate_up.size(1) / 2, {},
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
