// torch.ops.questtrain.int8_linear, int8_offset_linear, int4_linear and their like on CUDA: checks, output, dispatch.
#include "../stable.h"
#include "int4_sm80.h"
#include "int8_sm80.h"
#include "../quantize.h"
#ifdef QUESTTRAIN_SM90
#include "offset_sm90.h"
#include "tiles_sm90.h"
#endif

namespace questtrain {
namespace {

void check_scales(const Tensor& scales, const Tensor& x, int64_t length, const char* op,
                  const char* name) {
  check_vector(scales, x, length, op, name);
  check_dtype(scales, ScalarType::Float, op, name);
}

void check_sums(const Tensor& sums, const Tensor& x, int64_t length, const char* op,
                const char* name) {
  check_vector(sums, x, length, op, name);
  check_dtype(sums, ScalarType::Int, op, name);
}

// Both operands: 2-D, of one element type, and as wide.
void check_operands(const Tensor& x, const Tensor& weight, ScalarType type, int64_t width_divisor,
                    const char* op) {
  check_two_dimensional(x, op, "x");
  check_two_dimensional(weight, op, "weight");
  check_layout(x, x, op, "x");
  check_dtype(x, type, op, "x");
  check_matrix(weight, x, weight.size(0), x.size(1), op, "weight");
  check_dtype(weight, type, op, "weight");
  STD_TORCH_CHECK(x.size(1) > 0 && x.size(1) % width_divisor == 0, op, ": the width ", x.size(1),
                  " must be a multiple of ", width_divisor);
  STD_TORCH_CHECK(weight.size(0) > 0 && weight.size(0) % 8 == 0, op, ": the weight's rows ",
                  weight.size(0), " must be a multiple of 8");
}

Int8Arguments int8_arguments(const Tensor& x, const Tensor& x_scales, const Tensor& weight,
                             const Tensor& weight_scales, const Tensor& y) {
  return {static_cast<const int8_t*>(x.data_ptr()),
          static_cast<const int8_t*>(weight.data_ptr()),
          static_cast<const float*>(x_scales.data_ptr()),
          static_cast<const float*>(weight_scales.data_ptr()),
          y.data_ptr(),
          static_cast<int>(x.size(0)),
          static_cast<int>(weight.size(0)),
          static_cast<int>(x.size(1)),
          1,
          false};
}

void check_int8(const Tensor& x, const Tensor& x_scales, const Tensor& weight,
                const Tensor& weight_scales, ScalarType dtype, const char* op) {
  check_operands(x, weight, ScalarType::Char, 16, op);
  check_scales(x_scales, x, x.size(0), op, "x_scales");
  check_scales(weight_scales, x, weight.size(0), op, "weight_scales");
  check_floating(dtype, op, "dtype");
}

#ifdef QUESTTRAIN_SM90
bool is_hopper() {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return major == 9 && minor == 0;
}

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
  const char* op = "int8_linear";
  check_int8(x, x_scales, weight, weight_scales, dtype, op);
  Tensor y = torch::stable::new_empty(x, {x.size(0), weight.size(0)}, dtype);
  if (x.size(0) == 0) return y;
  const Int8Arguments arguments = int8_arguments(x, x_scales, weight, weight_scales, y);
  const DeviceGuard guard(x);
  const cudaStream_t stream = current_stream(x);
#ifdef QUESTTRAIN_SM90
  if (is_hopper()) {
    check_cuda(int8_sm90(output_of(dtype), arguments, stream), op);
    return y;
  }
#endif
  check_cuda(int8_sm80(output_of(dtype), arguments, stream), op);
  return y;
}

Tensor int8_linear_tile(Tensor x, Tensor x_scales, Tensor weight, Tensor weight_scales,
                        ScalarType dtype, int64_t tile) {
  const char* op = "int8_linear_tile";
  check_int8(x, x_scales, weight, weight_scales, dtype, op);
  STD_TORCH_CHECK(dtype == ScalarType::BFloat16, op, ": dtype must be bfloat16, not ",
                  name_of(dtype));
#ifdef QUESTTRAIN_SM90
  STD_TORCH_CHECK(tile >= 0 && tile < kTileNumbers, op, ": tile must be 0 to ", kTileNumbers - 1,
                  ", not ", tile);
  const DeviceGuard guard(x);
  STD_TORCH_CHECK(is_hopper(), op, ": tiles are for GPUs of compute capability 9.0");
  Tensor y = torch::stable::new_empty(x, {x.size(0), weight.size(0)}, dtype);
  if (x.size(0) == 0) return y;
  check_cuda(run_tile(static_cast<int>(tile),
                      int8_arguments(x, x_scales, weight, weight_scales, y), current_stream(x)),
             op);
  return y;
#else
  STD_TORCH_CHECK(false, op, ": this library was built without the architecture 90a");
#endif
}

// Whether codes of so many levels are offset.
bool is_offset(int64_t levels, const char* op, const char* name) {
  const bool power_of_two = levels >= 2 && levels <= kOffsetLevels && (levels & (levels - 1)) == 0;
  STD_TORCH_CHECK(power_of_two || levels == 3, op, ": ", name,
                  " must be 3 or a power of two from 2 to ", kOffsetLevels, ", not ", levels);
  return levels == kOffsetLevels;
}

Tensor int8_offset_linear(Tensor x, Tensor x_scales, Tensor x_sums, Tensor weight,
                          Tensor weight_scales, Tensor weight_sums, int64_t x_levels,
                          int64_t weight_levels, ScalarType dtype) {
  const char* op = "int8_offset_linear";
  check_int8(x, x_scales, weight, weight_scales, dtype, op);
  const int64_t rows = x.size(0), columns = weight.size(0), width = x.size(1);
  check_sums(x_sums, x, rows, op, "x_sums");
  check_sums(weight_sums, x, columns, op, "weight_sums");
  STD_TORCH_CHECK(width <= kLargestWidth, op, ": the width ", width, " exceeds ", kLargestWidth);
  const bool x_offset = is_offset(x_levels, op, "x_levels");
  const bool weight_offset = is_offset(weight_levels, op, "weight_levels");
  Tensor y = torch::stable::new_empty(x, {rows, columns}, dtype);
  if (rows == 0) return y;
  const OffsetArguments arguments{
      int8_arguments(x, x_scales, weight, weight_scales, y),
      weight_offset ? static_cast<const int32_t*>(x_sums.data_ptr()) : nullptr,
      x_offset ? static_cast<const int32_t*>(weight_sums.data_ptr()) : nullptr,
      (x_offset ? 2 : 1) * (weight_offset ? 2 : 1),
      x_offset && weight_offset ? 2 : 1,
      x_offset && weight_offset ? static_cast<int32_t>(width) : 0};
  const DeviceGuard guard(x);
  const cudaStream_t stream = current_stream(x);
#ifdef QUESTTRAIN_SM90
  if (is_hopper()) {
    check_cuda(run_offset(output_of(dtype), arguments, stream), op);
    return y;
  }
#endif
  check_cuda(int8_offset_sm80(output_of(dtype), arguments, stream), op);
  return y;
}

Tensor int4_linear(Tensor x, Tensor x_scales, Tensor x_sums, Tensor weight, Tensor weight_scales,
                   Tensor weight_sums, ScalarType dtype) {
  const char* op = "int4_linear";
  check_operands(x, weight, ScalarType::Byte, 32, op);
  const int64_t rows = x.size(0), columns = weight.size(0);
  check_scales(x_scales, x, rows, op, "x_scales");
  check_scales(weight_scales, x, columns, op, "weight_scales");
  check_sums(x_sums, x, rows, op, "x_sums");
  check_sums(weight_sums, x, columns, op, "weight_sums");
  check_floating(dtype, op, "dtype");
  Tensor y = torch::stable::new_empty(x, {rows, columns}, dtype);
  if (rows == 0) return y;
  const DeviceGuard guard(x);
  const Int4Arguments arguments{x.data_ptr(),
                                weight.data_ptr(),
                                static_cast<const float*>(x_scales.data_ptr()),
                                static_cast<const float*>(weight_scales.data_ptr()),
                                static_cast<const int32_t*>(x_sums.data_ptr()),
                                static_cast<const int32_t*>(weight_sums.data_ptr()),
                                y.data_ptr(),
                                static_cast<int>(rows),
                                static_cast<int>(columns),
                                static_cast<int>(2 * x.size(1))};
  check_cuda(int4_sm80(output_of(dtype), arguments, current_stream(x)), op);
  return y;
}

Tensor int4_sparse_linear(Tensor x, Tensor x_scales, Tensor weight, Tensor metadata,
                          Tensor weight_scales, ScalarType dtype) {
  const char* op = "int4_sparse_linear";
  check_two_dimensional(x, op, "x");
  check_two_dimensional(weight, op, "weight");
  const int64_t rows = x.size(0), width = 2 * x.size(1), columns = weight.size(0);
  STD_TORCH_CHECK(width > 0 && width % 128 == 0, op, ": the width ", width,
                  " must be a multiple of 128");
  STD_TORCH_CHECK(columns > 0 && columns % 16 == 0, op, ": the weight's rows ", columns,
                  " must be a multiple of 16");
  check_layout(x, x, op, "x");
  check_dtype(x, ScalarType::Byte, op, "x");
  check_matrix(weight, x, columns, width / 4, op, "weight");
  check_dtype(weight, ScalarType::Byte, op, "weight");
  check_matrix(metadata, x, columns, width / 16, op, "metadata");
  check_dtype(metadata, ScalarType::Byte, op, "metadata");
  check_scales(x_scales, x, rows, op, "x_scales");
  check_scales(weight_scales, x, columns, op, "weight_scales");
  check_floating(dtype, op, "dtype");
  Tensor y = torch::stable::new_empty(x, {rows, columns}, dtype);
  if (rows == 0) return y;
  const DeviceGuard guard(x);
  const Int4SparseArguments arguments{static_cast<const uint8_t*>(x.data_ptr()),
                                      static_cast<const uint8_t*>(weight.data_ptr()),
                                      static_cast<const uint8_t*>(metadata.data_ptr()),
                                      static_cast<const float*>(x_scales.data_ptr()),
                                      static_cast<const float*>(weight_scales.data_ptr()),
                                      y.data_ptr(),
                                      output_of(dtype),
                                      static_cast<int>(rows),
                                      static_cast<int>(columns),
                                      static_cast<int>(width)};
  check_cuda(int4_sparse_sm80(arguments, current_stream(x)), op);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
  m.impl("int8_linear_tile", TORCH_BOX(&int8_linear_tile));
  m.impl("int8_offset_linear", TORCH_BOX(&int8_offset_linear));
  m.impl("int4_linear", TORCH_BOX(&int4_linear));
  m.impl("int4_sparse_linear", TORCH_BOX(&int4_sparse_linear));
}

}  // namespace questtrain
