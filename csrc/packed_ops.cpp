// torch.ops.questtrain.packed_linear and .unpack on CUDA: checks, output, launch.
#include "packed_linear.h"
#include "stable.h"

namespace questtrain {
namespace {

Output output_of(ScalarType type) {
  return type == ScalarType::BFloat16 ? Output::bfloat16
         : type == ScalarType::Half   ? Output::half
                                      : Output::float32;
}

Tensor packed_linear(Tensor x, Tensor x_scales, Tensor x_sums, Tensor weight,
                     Tensor weight_scales, int64_t levels, ScalarType dtype) {
  const char* op = "packed_linear";
  check_two_dimensional(x, op, "x");
  check_two_dimensional(weight, op, "weight");
  const int bits = container_bits(levels, op);
  const int64_t rows = x.size(0), width = x.size(1), columns = weight.size(0);
  STD_TORCH_CHECK(rows <= kLargestPackedRows, op, ": x has ", rows, " rows, the kernel takes up to ",
                  kLargestPackedRows);
  STD_TORCH_CHECK(width > 0 && width % 128 == 0, op, ": the width ", width,
                  " must be a multiple of 128");
  STD_TORCH_CHECK(columns > 0 && columns % 16 == 0, op, ": weight has ", columns,
                  " rows, which must be a multiple of 16");
  check_layout(x, x, op, "x");
  check_dtype(x, ScalarType::Char, op, "x");
  check_vector(x_scales, x, rows, op, "x_scales");
  check_dtype(x_scales, ScalarType::Float, op, "x_scales");
  check_vector(x_sums, x, rows, op, "x_sums");
  check_dtype(x_sums, ScalarType::Int, op, "x_sums");
  check_matrix(weight, x, columns, width * bits / 8, op, "weight");
  check_dtype(weight, ScalarType::Byte, op, "weight");
  check_vector(weight_scales, x, columns, op, "weight_scales");
  check_dtype(weight_scales, ScalarType::Float, op, "weight_scales");
  check_floating(dtype, op, "dtype");
  Tensor y = torch::stable::new_empty(x, {rows, columns}, dtype);
  if (rows == 0) return y;

  const PackedLinearArguments arguments{
      static_cast<const int8_t*>(x.data_ptr()),
      static_cast<const float*>(x_scales.data_ptr()),
      static_cast<const int32_t*>(x_sums.data_ptr()),
      static_cast<const uint8_t*>(weight.data_ptr()),
      static_cast<const float*>(weight_scales.data_ptr()),
      y.data_ptr(),
      output_of(dtype),
      static_cast<int>(rows),
      static_cast<int>(columns),
      static_cast<int>(width),
      static_cast<int>(levels)};
  const DeviceGuard guard(x);
  const cudaStream_t stream = current_stream(x);
  switch (bits) {
    case 1: check_cuda(packed_linear_1bit(arguments, stream), op); break;
    case 2: check_cuda(packed_linear_2bit(arguments, stream), op); break;
    default: check_cuda(packed_linear_4bit(arguments, stream), op);
  }
  return y;
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
  m.impl("unpack", TORCH_BOX(&unpack_codes));
}

}  // namespace questtrain
