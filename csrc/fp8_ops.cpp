// torch.ops.questtrain.fp8_gradients and .fp8_transpose on CUDA: checks, outputs, launches.
#include <tuple>

#include "fp8_backward.h"
#include "stable.h"

namespace questtrain {
namespace {

constexpr int64_t kMultiple = 16;  // of every size: what torch._scaled_mm takes

void check_sizes(const Check& check, int64_t rows, int64_t columns) {
  if (rows % kMultiple)
    check.fail("the number of rows ", rows, " must be a multiple of ", kMultiple);
  check.multiple("the width", columns, kMultiple);
  if (rows > kFp8MostRows) check.fail(rows, " rows exceed ", kFp8MostRows);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gradients(Tensor grad, Tensor weight_scales,
                                                     Tensor x_scales) {
  const Check check("fp8_gradients", grad);
  Fp8GradientsArguments arguments{};
  arguments.grad = check.matrix("grad", grad, kAny, kAny, {ScalarType::BFloat16});
  const int64_t rows = grad.size(0), columns = grad.size(1);
  check_sizes(check, rows, columns);
  arguments.weight_scales = check.vector<float>("weight_scales", weight_scales, columns);
  arguments.x_scales = check.vector<float>("x_scales", x_scales, rows);
  Tensor by_rows = torch::stable::new_empty(grad, {rows, columns}, ScalarType::Float8_e4m3fn);
  Tensor by_columns = torch::stable::new_empty(grad, {columns, rows}, ScalarType::Float8_e4m3fn);
  Tensor unit_rows = torch::stable::new_empty(grad, {1}, ScalarType::Float);
  Tensor unit_columns = torch::stable::new_empty(grad, {1}, ScalarType::Float);
  Tensor sums = torch::stable::new_empty(grad, {kFp8SampledRows, 4}, ScalarType::Float);

  arguments.by_rows = by_rows.data_ptr();
  arguments.by_columns = by_columns.data_ptr();
  arguments.unit_rows = static_cast<float*>(unit_rows.data_ptr());
  arguments.unit_columns = static_cast<float*>(unit_columns.data_ptr());
  arguments.sums = static_cast<float4*>(sums.data_ptr());
  arguments.rows = rows;
  arguments.columns = static_cast<int>(columns);
  launch(check, fp8_gradients, arguments);
  return {by_rows, by_columns, unit_rows, unit_columns};
}

Tensor transpose(Tensor codes, int64_t levels) {
  const Check check("fp8_transpose", codes);
  Fp8TransposeArguments arguments{};
  arguments.codes = check.matrix("codes", codes, kAny, kAny, {ScalarType::Char, ScalarType::Byte});
  const int bits = check.packed_levels("levels", levels);  // int8 codes too are exact in e4m3
  const bool packed = codes.scalar_type() == ScalarType::Byte;
  const int64_t rows = codes.size(0), columns = packed ? codes.size(1) * 8 / bits : codes.size(1);
  check_sizes(check, rows, columns);
  Tensor transposed = torch::stable::new_empty(codes, {columns, rows}, ScalarType::Float8_e4m3fn);
  if (rows == 0) return transposed;

  arguments.transposed = transposed.data_ptr();
  arguments.rows = rows;
  arguments.columns = static_cast<int>(columns);
  arguments.bits = packed ? bits : 8;
  arguments.levels = static_cast<int>(levels);
  launch(check, fp8_transpose, arguments);
  return transposed;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("fp8_gradients", TORCH_BOX(&gradients));
  m.impl("fp8_transpose", TORCH_BOX(&transpose));
}

}  // namespace questtrain
