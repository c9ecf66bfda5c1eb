// torch.ops.questtrain.*_quantize on CUDA: checks, outputs, launch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <tuple>

#include "quantize_arguments.h"

namespace questtrain {
namespace {

using Quantized = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using HiddenAndQuantized = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Quantized quantize(const Check& check, const Source& source, const Format& format) {
  const Tensor& x = check.like;
  const auto [levels, alpha, block, packed, trust] = format;
  const int bits = check.format(source.width, levels, kOffsetLevels, alpha, block, packed);
  const auto code_type = packed ? ScalarType::Byte : ScalarType::Char;
  const int64_t rows = source.rows, mask_bytes = trust ? source.width / 8 : 0;
  Tensor codes = torch::stable::new_empty(x, {rows, source.width * bits / 8}, code_type);
  Tensor scales = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  Tensor sums = torch::stable::new_empty(x, {rows}, ScalarType::Int);
  Tensor mask = torch::stable::new_empty(x, {rows, mask_bytes}, ScalarType::Byte);
  if (rows == 0) return {codes, scales, sums, mask};

  QuantizeArguments arguments = arguments_of(source, format);
  arguments.codes = codes.data_ptr();
  arguments.scales = static_cast<float*>(scales.data_ptr());
  arguments.sums = static_cast<int32_t*>(sums.data_ptr());
  arguments.mask = trust ? static_cast<uint8_t*>(mask.data_ptr()) : nullptr;
  arguments.container_bits = bits;
  const auto kernel = by_element(x.scalar_type(), launch_quantize<__nv_bfloat16>,
                                 launch_quantize<__half>, launch_quantize<float>);
  launch_op(check, kernel, source.operand, arguments);
  return {codes, scales, sums, mask};
}

Quantized hadamard_quantize(Tensor x, int64_t levels, double alpha, int64_t block, bool packed,
                            std::optional<double> trust) {
  const Check check("hadamard_quantize", x);
  return quantize(check, plain_source(check, x), {levels, alpha, block, packed, trust});
}

Quantized rmsnorm_quantize(Tensor x, Tensor weight, double epsilon, int64_t levels, double alpha,
                           int64_t block, bool packed, std::optional<double> trust) {
  const Check check("rmsnorm_quantize", x);
  return quantize(check, norm_source(check, "weight", x, weight, epsilon),
                  {levels, alpha, block, packed, trust});
}

HiddenAndQuantized add_rmsnorm_quantize(Tensor x, Tensor residual, Tensor weight, double epsilon,
                                        int64_t levels, double alpha, int64_t block, bool packed,
                                        std::optional<double> trust) {
  const Check check("add_rmsnorm_quantize", x);
  Tensor hidden;
  const Source source = add_norm_source(check, "weight", x, residual, weight, epsilon, hidden);
  return std::tuple_cat(std::tuple(hidden),
                        quantize(check, source, {levels, alpha, block, packed, trust}));
}

Quantized swiglu_quantize(Tensor gate_up, int64_t levels, double alpha, int64_t block, bool packed,
                          std::optional<double> trust) {
  const Check check("swiglu_quantize", gate_up);
  return quantize(check, swiglu_source(check, gate_up), {levels, alpha, block, packed, trust});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("hadamard_quantize", TORCH_BOX(&hadamard_quantize));
  m.impl("rmsnorm_quantize", TORCH_BOX(&rmsnorm_quantize));
  m.impl("add_rmsnorm_quantize", TORCH_BOX(&add_rmsnorm_quantize));
  m.impl("swiglu_quantize", TORCH_BOX(&swiglu_quantize));
}

}  // namespace questtrain
