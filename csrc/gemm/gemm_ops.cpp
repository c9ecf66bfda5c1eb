// torch.ops.questtrain.int8_linear, int8_offset_linear, int4_linear and their like on CUDA: checks,
// output, dispatch.
#include "../stable.h"
#include "products_sm80.h"
#ifdef QUESTTRAIN_SM90
#include "tiles_sm90.h"
#endif

namespace questtrain {
namespace {

// The arguments of int8_linear and int8_offset_linear, or of int4_linear, but for y and the sums.
OffsetArguments arguments_of(const ProductOperands& operands) {
  OffsetArguments arguments{};
  arguments.x = operands.x;
  arguments.weight = operands.weight;
  arguments.x_scales = operands.x_scales;
  arguments.weight_scales = operands.weight_scales;
  arguments.rows = static_cast<int>(operands.rows);
  arguments.columns = static_cast<int>(operands.columns);
  arguments.width = static_cast<int>(operands.width);
  arguments.swizzle = 1;
  return arguments;
}

OffsetArguments int8_arguments(const Check& check, const Tensor& x, const Tensor& x_scales,
                               const Tensor& weight, const Tensor& weight_scales,
                               ScalarType dtype) {
  return arguments_of(product_operands<int8_t, int8_t>(check, x, x_scales, 1, weight,
                                                       weight_scales, 8, {16, 8}, dtype));
}

// The sums of either side.
void set_sums(const Check& check, const Tensor& x_sums, const Tensor& weight_sums,
              OffsetArguments& arguments) {
  arguments.x_sums = check.vector<int32_t>("x_sums", x_sums, arguments.rows);
  arguments.weight_sums = check.vector<int32_t>("weight_sums", weight_sums, arguments.columns);
}

// y of the dtype, which kernel(arguments, stream) computes.
template <class Arguments, class Kernel>
Tensor product(const Check& check, Arguments arguments, ScalarType dtype, const Kernel& kernel) {
  Tensor y = torch::stable::new_empty(check.like, {arguments.rows, arguments.columns}, dtype);
  arguments.y = y.data_ptr();
  if (arguments.rows) launch_op(check, kernel, arguments);
  return y;
}

#ifdef QUESTTRAIN_SM90
cudaError_t int8_sm90(Output output, const Int8Arguments& a, cudaStream_t stream) {
  const bool few = a.rows <= 256;
  switch (output) {
    case Output::bfloat16: return run_tile(tile_for(a.rows, a.columns, a.width), a, stream);
    case Output::half:
      return few ? int8_64x64_swapped_half(a, stream) : int8_128x128_pingpong_half(a, stream);
    default:
      return few ? int8_64x64_swapped_float(a, stream) : int8_128x128_pingpong_float(a, stream);
  }
}
#endif

Tensor int8_linear(Tensor x, Tensor x_scales, Tensor weight, Tensor weight_scales,
                   ScalarType dtype) {
  const Check check("int8_linear", x);
  const Int8Arguments arguments =
      int8_arguments(check, x, x_scales, weight, weight_scales, dtype);
  return product(check, arguments, dtype, [&](const Int8Arguments& a, cudaStream_t stream) {
#ifdef QUESTTRAIN_SM90
    if (is_hopper()) return int8_sm90(output_of(dtype), a, stream);
#endif
    return int8_sm80(output_of(dtype), a, stream);
  });
}

Tensor int8_linear_tile(Tensor x, Tensor x_scales, Tensor weight, Tensor weight_scales,
                        ScalarType dtype, int64_t tile) {
  const Check check("int8_linear_tile", x);
  const Int8Arguments arguments =
      int8_arguments(check, x, x_scales, weight, weight_scales, dtype);
  if (dtype != ScalarType::BFloat16)
    check.fail("dtype must be bfloat16, not torch.", name_of(dtype));
#ifdef QUESTTRAIN_SM90
  if (tile < 0 || tile >= kTileNumbers)
    check.fail("tile must be 0 to ", kTileNumbers - 1, ", not ", tile);
  const DeviceGuard guard(x);
  if (!is_hopper()) check.fail("tiles are for GPUs of compute capability 9.0");
  return product(check, arguments, dtype, [&](const Int8Arguments& a, cudaStream_t stream) {
    return run_tile(static_cast<int>(tile), a, stream);
  });
#else
  check.fail("this library was built without the architecture 90a");
#endif
}

Tensor int8_offset_linear(Tensor x, Tensor x_scales, Tensor x_sums, Tensor weight,
                          Tensor weight_scales, Tensor weight_sums, int64_t x_levels,
                          int64_t weight_levels, ScalarType dtype) {
  const Check check("int8_offset_linear", x);
  OffsetArguments arguments =
      int8_arguments(check, x, x_scales, weight, weight_scales, dtype);
  set_sums(check, x_sums, weight_sums, arguments);
  check.levels("x_levels", x_levels);
  check.levels("weight_levels", weight_levels);
  check.width_at_most(arguments.width, kLargestWidth);
  const bool x_offset = x_levels == kOffsetLevels, weight_offset = weight_levels == kOffsetLevels;
  if (!weight_offset) arguments.x_sums = nullptr;
  if (!x_offset) arguments.weight_sums = nullptr;
  arguments.product_factor = (x_offset ? 2 : 1) * (weight_offset ? 2 : 1);
  arguments.sum_factor = x_offset && weight_offset ? 2 : 1;
  arguments.constant = x_offset && weight_offset ? arguments.width : 0;
  return product(check, arguments, dtype, [&](const OffsetArguments& a, cudaStream_t stream) {
#ifdef QUESTTRAIN_SM90
    if (is_hopper()) return run_offset(output_of(dtype), a, stream);
#endif
    return int8_offset_sm80(output_of(dtype), a, stream);
  });
}

Tensor int4_linear(Tensor x, Tensor x_scales, Tensor x_sums, Tensor weight, Tensor weight_scales,
                   Tensor weight_sums, ScalarType dtype) {
  const Check check("int4_linear", x);
  OffsetArguments arguments = arguments_of(product_operands<uint8_t, uint8_t>(
      check, x, x_scales, 2, weight, weight_scales, 4, {64, 8}, dtype));
  set_sums(check, x_sums, weight_sums, arguments);
  // With v = 2q - 15: Σ v_x·v_w = 4·Σ q_x·q_w - 15·(Σ v_x + Σ v_w) - 225·K.
  arguments.product_factor = 4;
  arguments.sum_factor = -15;
  arguments.constant = -225 * arguments.width;
  return product(check, arguments, dtype, [&](const OffsetArguments& a, cudaStream_t stream) {
    return int4_sm80(output_of(dtype), a, stream);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
  m.impl("int8_linear_tile", TORCH_BOX(&int8_linear_tile));
  m.impl("int8_offset_linear", TORCH_BOX(&int8_offset_linear));
  m.impl("int4_linear", TORCH_BOX(&int4_linear));
}

}  // namespace questtrain
