// torch.ops.questtrain.packed_linear, .*_quantize_linear and .unpack on CUDA: checks, output, launch.
#include <tuple>

#include "packed_linear.h"
#include "quantize_arguments.h"

namespace questtrain {
namespace {

// The weight's part of the arguments; returns its container bits.
int set_weight(PackedLinearArguments& arguments, const Tensor& like, int64_t width,
               const Tensor& weight, const Tensor& weight_scales, int64_t levels, const char* op) {
  const int bits = container_bits(levels, op);
  check_two_dimensional(weight, op, "weight");
  const int64_t columns = weight.size(0);
  STD_TORCH_CHECK(width > 0 && width % 128 == 0, op, ": the width ", width,
                  " must be a multiple of 128");
  STD_TORCH_CHECK(columns > 0 && columns % 16 == 0, op, ": weight has ", columns,
                  " rows, which must be a multiple of 16");
  check_matrix(weight, like, columns, width * bits / 8, op, "weight");
  check_dtype(weight, ScalarType::Byte, op, "weight");
  check_vector(weight_scales, like, columns, op, "weight_scales");
  check_dtype(weight_scales, ScalarType::Float, op, "weight_scales");
  arguments.weight = static_cast<const uint8_t*>(weight.data_ptr());
  arguments.weight_scales = static_cast<const float*>(weight_scales.data_ptr());
  arguments.columns = static_cast<int>(columns);
  arguments.width = static_cast<int>(width);
  arguments.levels = static_cast<int>(levels);
  return bits;
}

void check_rows(int64_t rows, int64_t most, const char* op) {
  STD_TORCH_CHECK(rows <= most, op, ": x has ", rows, " rows, the kernel takes up to ", most);
}

Tensor packed_linear(Tensor x, Tensor x_scales, Tensor x_sums, Tensor weight,
                     Tensor weight_scales, int64_t levels, ScalarType dtype) {
  const char* op = "packed_linear";
  check_two_dimensional(x, op, "x");
  const int64_t rows = x.size(0);
  check_rows(rows, kLargestPackedRows, op);
  check_layout(x, x, op, "x");
  check_dtype(x, ScalarType::Char, op, "x");
  check_vector(x_scales, x, rows, op, "x_scales");
  check_dtype(x_scales, ScalarType::Float, op, "x_scales");
  check_vector(x_sums, x, rows, op, "x_sums");
  check_dtype(x_sums, ScalarType::Int, op, "x_sums");
  check_floating(dtype, op, "dtype");
  PackedLinearArguments arguments{};
  const int bits = set_weight(arguments, x, x.size(1), weight, weight_scales, levels, op);
  Tensor y = torch::stable::new_empty(x, {rows, weight.size(0)}, dtype);
  if (rows == 0) return y;

  arguments.x = static_cast<const int8_t*>(x.data_ptr());
  arguments.x_scales = static_cast<const float*>(x_scales.data_ptr());
  arguments.x_sums = static_cast<const int32_t*>(x_sums.data_ptr());
  arguments.y = y.data_ptr();
  arguments.output = output_of(dtype);
  arguments.rows = static_cast<int>(rows);
  const DeviceGuard guard(x);
  const cudaStream_t stream = current_stream(x);
  switch (bits) {
    case 1: check_cuda(packed_linear_1bit(arguments, stream), op); break;
    case 2: check_cuda(packed_linear_2bit(arguments, stream), op); break;
    default: check_cuda(packed_linear_4bit(arguments, stream), op);
  }
  return y;
}

// How the activations are quantized on the way to a product, and with what weight.
struct FusedFormat {
  int64_t levels;
  double alpha;
  Tensor weight, weight_scales;
  int64_t weight_levels;
};

Tensor quantize_linear(Operand operand, const Tensor& x, int64_t width, QuantizeArguments quantize,
                       const FusedFormat& format, const char* op) {
  const Format activations{format.levels, format.alpha, 128, false, std::nullopt};
  check_format(activations, width, op, 128);  // whose codes are the integers
  STD_TORCH_CHECK(x.scalar_type() != ScalarType::Float, op,
                  ": x must be bfloat16 or float16, not float32");
  const int64_t rows = x.size(0);
  check_rows(rows, kLargestFusedRows, op);
  STD_TORCH_CHECK(width <= kLargestFusedWidth, op, ": the width ", width, " exceeds ",
                  kLargestFusedWidth);
  PackedLinearArguments arguments{};
  const int bits = set_weight(arguments, x, width, format.weight, format.weight_scales,
                              format.weight_levels, op);
  STD_TORCH_CHECK(bits != 1 || width % 256 == 0, op, ": the width ", width,
                  " of 1-bit weights must be a multiple of 256");
  Tensor y = torch::stable::new_empty(x, {rows, format.weight.size(0)});
  if (rows == 0) return y;

  quantize.x = x.data_ptr();
  set_format(quantize, activations, rows, width);
  arguments.y = y.data_ptr();
  arguments.output = output_of(x.scalar_type());
  arguments.rows = static_cast<int>(rows);
  const bool half = x.scalar_type() == ScalarType::Half;
  const DeviceGuard guard(x);
  const cudaStream_t stream = current_stream(x);
  switch (bits) {
    case 1: check_cuda(quantize_linear_1bit(operand, half, arguments, quantize, stream), op); break;
    case 2: check_cuda(quantize_linear_2bit(operand, half, arguments, quantize, stream), op); break;
    default: check_cuda(quantize_linear_4bit(operand, half, arguments, quantize, stream), op);
  }
  return y;
}

Tensor hadamard_quantize_linear(Tensor x, int64_t levels, double alpha, Tensor weight,
                                Tensor weight_scales, int64_t weight_levels) {
  const char* op = "hadamard_quantize_linear";
  check_operand(x, op, "x");
  return quantize_linear(Operand::plain, x, x.size(1), {},
                         {levels, alpha, weight, weight_scales, weight_levels}, op);
}

Tensor rmsnorm_quantize_linear(Tensor x, Tensor norm_weight, double epsilon, int64_t levels,
                               double alpha, Tensor weight, Tensor weight_scales,
                               int64_t weight_levels) {
  const char* op = "rmsnorm_quantize_linear";
  check_operand(x, op, "x");
  return quantize_linear(Operand::rmsnorm, x, x.size(1),
                         norm_arguments(x, norm_weight, epsilon, op, "norm_weight"),
                         {levels, alpha, weight, weight_scales, weight_levels}, op);
}

std::tuple<Tensor, Tensor> add_rmsnorm_quantize_linear(Tensor x, Tensor residual,
                                                       Tensor norm_weight, double epsilon,
                                                       int64_t levels, double alpha, Tensor weight,
                                                       Tensor weight_scales,
                                                       int64_t weight_levels) {
  const char* op = "add_rmsnorm_quantize_linear";
  check_operand(x, op, "x");
  check_residual(residual, x, op);
  QuantizeArguments arguments = norm_arguments(x, norm_weight, epsilon, op, "norm_weight");
  Tensor hidden = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  arguments.residual = residual.data_ptr();
  arguments.hidden = hidden.data_ptr();
  Tensor y = quantize_linear(Operand::add_rmsnorm, x, x.size(1), arguments,
                             {levels, alpha, weight, weight_scales, weight_levels}, op);
  return {hidden, y};
}

Tensor swiglu_quantize_linear(Tensor gate_up, int64_t levels, double alpha, Tensor weight,
                              Tensor weight_scales, int64_t weight_levels) {
  const char* op = "swiglu_quantize_linear";
  return quantize_linear(Operand::swiglu, gate_up, swiglu_width(gate_up, op), {},
                         {levels, alpha, weight, weight_scales, weight_levels}, op);
}

Tensor unpack_codes(Tensor packed, int64_t levels) {
  const char* op = "unpack";
  check_two_dimensional(packed, op, "packed");
  check_layout(packed, packed, op, "packed");
  check_dtype(packed, ScalarType::Byte, op, "packed");
  const int bits = container_bits(levels, op);
  const int64_t width = packed.size(1) * 8 / bits;
  STD_TORCH_CHECK(width % 32 == 0, op, ": the unpacked width ", width, " must be a multiple of 32");
  Tensor values = torch::stable::new_empty(packed, {packed.size(0), width}, ScalarType::Char);
  const int64_t count = packed.size(0) * width;
  if (count == 0) return values;
  const DeviceGuard guard(packed);
  check_cuda(unpack(static_cast<const uint8_t*>(packed.data_ptr()),
                    static_cast<int8_t*>(values.data_ptr()), count, bits,
                    static_cast<int>(levels), current_stream(packed)),
             op);
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
  m.impl("hadamard_quantize_linear", TORCH_BOX(&hadamard_quantize_linear));
  m.impl("rmsnorm_quantize_linear", TORCH_BOX(&rmsnorm_quantize_linear));
  m.impl("add_rmsnorm_quantize_linear", TORCH_BOX(&add_rmsnorm_quantize_linear));
  m.impl("swiglu_quantize_linear", TORCH_BOX(&swiglu_quantize_linear));
  m.impl("unpack", TORCH_BOX(&unpack_codes));
}

}  // namespace questtrain
