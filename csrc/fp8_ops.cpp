// torch.ops.questtrain.fp8_gradients and .fp8_transpose on CUDA: checks, outputs, launches.
#include <tuple>

#include "fp8_backward.h"
#include "stable.h"

namespace questtrain {
namespace {

constexpr int64_t kMultiple = 16;  // of every size: what torch._scaled_mm takes

void check_sizes(int64_t rows, int64_t columns, const char* op) {
  STD_TORCH_CHECK(rows % kMultiple == 0, op, ": the number of rows ", rows,
                  " must be a multiple of ", kMultiple);
  STD_TORCH_CHECK(columns > 0 && columns % kMultiple == 0, op, ": the width ", columns,
                  " must be a multiple of ", kMultiple);
  STD_TORCH_CHECK(rows <= kFp8MostRows, op, ": ", rows, " rows exceed ", kFp8MostRows);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gradients(Tensor grad, Tensor weight_scales,
                                                     Tensor x_scales) {
  const char* op = "fp8_gradients";
  check_two_dimensional(grad, op, "grad");
  check_dtype(grad, ScalarType::BFloat16, op, "grad");
  check_layout(grad, grad, op, "grad");
  const int64_t rows = grad.size(0), columns = grad.size(1);
  check_sizes(rows, columns, op);
  check_vector(weight_scales, grad, columns, op, "weight_scales");
  check_dtype(weight_scales, ScalarType::Float, op, "weight_scales");
  check_vector(x_scales, grad, rows, op, "x_scales");
  check_dtype(x_scales, ScalarType::Float, op, "x_scales");
  Tensor by_rows = torch::stable::new_empty(grad, {rows, columns}, ScalarType::Float8_e4m3fn);
  Tensor by_columns = torch::stable::new_empty(grad, {columns, rows}, ScalarType::Float8_e4m3fn);
  Tensor unit_rows = torch::stable::new_empty(grad, {1}, ScalarType::Float);
  Tensor unit_columns = torch::stable::new_empty(grad, {1}, ScalarType::Float);
  Tensor sums = torch::stable::new_empty(grad, {kFp8SampledRows, 4}, ScalarType::Float);

  Fp8GradientsArguments arguments{};
  arguments.grad = grad.data_ptr();
  arguments.weight_scales = static_cast<const float*>(weight_scales.data_ptr());
  arguments.x_scales = static_cast<const float*>(x_scales.data_ptr());
  arguments.by_rows = by_rows.data_ptr();
  arguments.by_columns = by_columns.data_ptr();
  arguments.unit_rows = static_cast<float*>(unit_rows.data_ptr());
  arguments.unit_columns = static_cast<float*>(unit_columns.data_ptr());
  arguments.sums = static_cast<float4*>(sums.data_ptr());
  arguments.rows = rows;
  arguments.columns = static_cast<int>(columns);
  const DeviceGuard guard(grad);
  check_cuda(fp8_gradients(arguments, current_stream(grad)), op);
  return {by_rows, by_columns, unit_rows, unit_columns};
}

Tensor transpose(Tensor codes, int64_t levels) {
  const char* op = "fp8_transpose";
  check_two_dimensional(codes, op, "codes");
  const bool packed = codes.scalar_type() == ScalarType::Byte;
  if (!packed) check_dtype(codes, ScalarType::Char, op, "codes");
  check_layout(codes, codes, op, "codes");
  const int bits = container_bits(levels, op);  // int8 codes too have to be exact in e4m3
  const int64_t rows = codes.size(0), columns = packed ? codes.size(1) * 8 / bits : codes.size(1);
  check_sizes(rows, columns, op);
  Tensor transposed = torch::stable::new_empty(codes, {columns, rows}, ScalarType::Float8_e4m3fn);
  if (rows == 0) return transposed;

  Fp8TransposeArguments arguments{};
  arguments.codes = codes.data_ptr();
  arguments.transposed = transposed.data_ptr();
  arguments.rows = rows;
  arguments.columns = static_cast<int>(columns);
  arguments.bits = packed ? bits : 8;
  arguments.levels = static_cast<int>(levels);
  const DeviceGuard guard(codes);
  check_cuda(fp8_transpose(arguments, current_stream(codes)), op);
  return transposed;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("fp8_gradients", TORCH_BOX(&gradients));
  m.impl("fp8_transpose", TORCH_BOX(&transpose));
}

}  // namespace questtrain
