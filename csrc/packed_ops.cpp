// torch.ops.questtrain.packed_linear and .*_quantize_linear on CUDA: checks, output, launch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <optional>
#include <tuple>

#include "packed_tiles.h"
#include "quantize_arguments.h"

namespace questtrain {
namespace {

// What activations that are quantized on the way are multiplied with.
struct PackedWeight {
  const Tensor &codes, &scales;
  int64_t levels;
};

void check_rows(const Check& check, int64_t rows, int64_t most) {
  if (rows > most) check.fail("x has ", rows, " rows, the kernel takes up to ", most);
}

// The instance of a kernel that is for a weight of so many bits.
template <class Kernel>
Kernel by_bits(int bits, Kernel one, Kernel two, Kernel four) {
  return bits == 1 ? one : bits == 2 ? two : four;
}

Tensor packed_linear(Tensor x, Tensor x_scales, Tensor x_sums, Tensor weight,
                     Tensor weight_scales, int64_t levels, ScalarType dtype) {
  const Check check("packed_linear", x);
  const int bits = check.packed_levels("levels", levels);
  const ProductOperands operands = product_operands<int8_t, uint8_t>(
      check, x, x_scales, 1, weight, weight_scales, bits, {128, 16}, dtype);
  const int64_t rows = operands.rows;
  PackedLinearArguments arguments{};
  arguments.x = static_cast<const int8_t*>(operands.x);
  arguments.x_scales = operands.x_scales;
  arguments.x_sums = check.vector<int32_t>("x_sums", x_sums, rows);
  arguments.weight = static_cast<const uint8_t*>(operands.weight);
  arguments.weight_scales = operands.weight_scales;
  arguments.columns = static_cast<int>(operands.columns);
  arguments.width = static_cast<int>(operands.width);
  arguments.levels = static_cast<int>(levels);
  check_rows(check, rows, kLargestPackedRows);
  Tensor y = torch::stable::new_empty(x, {rows, weight.size(0)}, dtype);
  if (rows == 0) return y;

  arguments.y = y.data_ptr();
  arguments.output = output_of(dtype);
  arguments.rows = static_cast<int>(rows);
  const auto kernel = by_bits(bits, launch_packed_linear<1>, launch_packed_linear<2>,
                              launch_packed_linear<4>);
  launch_op(check, kernel, arguments);
  return y;
}

#ifdef QUESTTRAIN_SM90
bool has_tiles(const Tensor& x) {
  const DeviceGuard guard(x);
  return is_hopper();
}

// Whether tiles multiply: on Hopper, more rows than are quantized on the way, a width in whole blocks.
bool tiles_serve(const Tensor& x, const PackedLinearArguments& a, int bits) {
  return a.rows > kMostRowsOnTheWay && a.width % tile_block(bits) == 0 && has_tiles(x);
}

void check_tile(const Check& check, int64_t tile) {
  if (tile < 0 || tile >= kPackedTileNumbers)
    check.fail("tile must be 0 to ", kPackedTileNumbers - 1, ", not ", tile);
  if (!has_tiles(check.like)) check.fail("tiles are for GPUs of compute capability 9.0");
}

// Two kernels: the codes of x lie in memory between them, in the order that tiles multiply.
void multiply_by_tiles(const Check& check, const Source& source, const Format& format, int bits,
                       std::optional<int64_t> tile, PackedLinearArguments& product) {
  const Tensor& x = check.like;
  Tensor codes = torch::stable::new_empty(x, {source.rows, source.width}, ScalarType::Char);
  Tensor scales = torch::stable::new_empty(x, {source.rows}, ScalarType::Float);
  Tensor sums = torch::stable::new_empty(x, {source.rows}, ScalarType::Int);
  QuantizeArguments arguments = arguments_of(source, format);
  arguments.codes = codes.data_ptr();
  arguments.scales = static_cast<float*>(scales.data_ptr());
  arguments.sums = static_cast<int32_t*>(sums.data_ptr());
  arguments.container_bits = 8;
  arguments.tile_bits = bits;
  const auto quantizer = by_element(x.scalar_type(), launch_quantize<__nv_bfloat16>,
                                    launch_quantize<__half>, launch_quantize<float>);
  launch_op(check, quantizer, source.operand, arguments);
  product.x = static_cast<const int8_t*>(codes.data_ptr());
  product.x_scales = arguments.scales;
  product.x_sums = arguments.sums;
  const int chosen = static_cast<int>(tile.value_or(
      packed_tile_for(bits, product.rows, product.columns, product.width)));
  const auto kernel = by_bits(bits, launch_packed_tile<1>, launch_packed_tile<2>,
                              launch_packed_tile<4>);
  launch_op(check, kernel, chosen, product);
}
#else
bool tiles_serve(const Tensor&, const PackedLinearArguments&, int) { return false; }

void check_tile(const Check& check, int64_t) {
  check.fail("this library was built without the architecture 90a");
}

void multiply_by_tiles(const Check& check, const Source&, const Format&, int,
                       std::optional<int64_t>, PackedLinearArguments&) {
  check_tile(check, 0);
}
#endif

Tensor quantize_linear(const Check& check, const Source& source, int64_t levels, double alpha,
                       const PackedWeight& weight, std::optional<int64_t> tile = std::nullopt) {
  const Tensor& x = check.like;
  const Format format{levels, alpha, 128, false, std::nullopt};
  check.format(source.width, levels, kIntegerLevels, alpha, format.block);
  PackedLinearArguments arguments{};
  const int bits = check.packed_levels("weight_levels", weight.levels);
  arguments.weight = check.matrix<uint8_t>("weight", weight.codes, kAny, source.width * bits / 8);
  const int64_t columns = weight.codes.size(0);
  check.multiple("the weight's rows", columns, 16);
  arguments.weight_scales = check.vector<float>("weight_scales", weight.scales, columns);
  arguments.columns = static_cast<int>(columns);
  arguments.width = static_cast<int>(source.width);
  arguments.levels = static_cast<int>(weight.levels);
  arguments.rows = static_cast<int>(source.rows);
  if (x.scalar_type() == ScalarType::Float)
    check.fail("x must be bfloat16 or float16, not torch.float32");
  const bool tiled = tile || tiles_serve(x, arguments, bits);
  check_rows(check, source.rows, tiled ? kLargestTiledRows : kLargestFusedRows);
  check.width_at_most(source.width, kLargestFusedWidth);
  if (bits == 1 && source.width % 256)
    check.fail("the width ", source.width, " of 1-bit weights must be a multiple of 256");
  Tensor y = torch::stable::new_empty(x, {source.rows, columns});
  if (source.rows == 0) return y;

  arguments.y = y.data_ptr();
  arguments.output = output_of(x.scalar_type());
  if (tiled) {
    multiply_by_tiles(check, source, format, bits, tile, arguments);
    return y;
  }
  const auto kernel = by_bits(bits, launch_quantize_linear<1>, launch_quantize_linear<2>,
                              launch_quantize_linear<4>);
  launch_op(check, kernel, source.operand, arguments, arguments_of(source, format));
  return y;
}

Tensor hadamard_quantize_linear(Tensor x, int64_t levels, double alpha, Tensor weight,
                                Tensor weight_scales, int64_t weight_levels) {
  const Check check("hadamard_quantize_linear", x);
  return quantize_linear(check, plain_source(check, x), levels, alpha,
                         {weight, weight_scales, weight_levels});
}

// By one numbered tile, for tuning.
Tensor hadamard_quantize_linear_tile(Tensor x, int64_t levels, double alpha, Tensor weight,
                                     Tensor weight_scales, int64_t weight_levels, int64_t tile) {
  const Check check("hadamard_quantize_linear_tile", x);
  check_tile(check, tile);
  return quantize_linear(check, plain_source(check, x), levels, alpha,
                         {weight, weight_scales, weight_levels}, tile);
}

Tensor rmsnorm_quantize_linear(Tensor x, Tensor norm_weight, double epsilon, int64_t levels,
                               double alpha, Tensor weight, Tensor weight_scales,
                               int64_t weight_levels) {
  const Check check("rmsnorm_quantize_linear", x);
  return quantize_linear(check, norm_source(check, "norm_weight", x, norm_weight, epsilon), levels,
                         alpha, {weight, weight_scales, weight_levels});
}

std::tuple<Tensor, Tensor> add_rmsnorm_quantize_linear(Tensor x, Tensor residual,
                                                       Tensor norm_weight, double epsilon,
                                                       int64_t levels, double alpha, Tensor weight,
                                                       Tensor weight_scales,
                                                       int64_t weight_levels) {
  const Check check("add_rmsnorm_quantize_linear", x);
  Tensor hidden;
  const Source source =
      add_norm_source(check, "norm_weight", x, residual, norm_weight, epsilon, hidden);
  Tensor y = quantize_linear(check, source, levels, alpha,
                             {weight, weight_scales, weight_levels});
  return {hidden, y};
}

Tensor swiglu_quantize_linear(Tensor gate_up, int64_t levels, double alpha, Tensor weight,
                              Tensor weight_scales, int64_t weight_levels) {
  const Check check("swiglu_quantize_linear", gate_up);
  return quantize_linear(check, swiglu_source(check, gate_up), levels, alpha,
                         {weight, weight_scales, weight_levels});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
  m.impl("hadamard_quantize_linear", TORCH_BOX(&hadamard_quantize_linear));
  m.impl("hadamard_quantize_linear_tile", TORCH_BOX(&hadamard_quantize_linear_tile));
  m.impl("rmsnorm_quantize_linear", TORCH_BOX(&rmsnorm_quantize_linear));
  m.impl("add_rmsnorm_quantize_linear", TORCH_BOX(&add_rmsnorm_quantize_linear));
  m.impl("swiglu_quantize_linear", TORCH_BOX(&swiglu_quantize_linear));
}

}  // namespace questtrain
