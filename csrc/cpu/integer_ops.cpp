// torch.ops.questtrain.packed_linear, .int8_linear, .int8_offset_linear and .unpack on the CPU. The
// sums are exact integers, the scaling is done in float64 and rounded through fp32, as torch's .to()
// does: the same bits as the references'.
#include <vector>

#include "products.h"

namespace questtrain::cpu {
namespace {

// x [rows, width] of int8 codes and its scales, and what becomes of the sums: they are multiplied by
// `factor`, and with these terms added they are the product.
struct Rows {
  const int8_t* codes;
  const float* scales;
  int64_t count, width;
  int32_t factor;
  std::vector<int32_t> terms;
  int32_t largest = 0;  // magnitude of a code
};

Rows check_x(const Tensor& x, const Tensor& scales, int64_t multiple, const char* op) {
  check_two_dimensional(x, op, "x");
  check_dtype(x, ScalarType::Char, op, "x");
  check_layout(x, op, "x");
  check_multiple(x.size(1), multiple, op, "the width");
  // Every sum of so many products of int8 codes stays below 2^31.
  STD_TORCH_CHECK(x.size(1) < (1 << 17), op, ": the width ", x.size(1), " exceeds ",
                  (1 << 17) - 1);
  check_vector(scales, x.size(0), ScalarType::Float, op, "x_scales");
  return {static_cast<const int8_t*>(x.data_ptr()), static_cast<const float*>(scales.data_ptr()),
          x.size(0), x.size(1), 1, {}};
}

// Terms of `per_code` for each row's sum of codes, and `constant`.
void set_terms(Rows& rows, const Kernels& path, int32_t per_code, int32_t constant) {
  rows.terms.resize(rows.count);
  for (int64_t m = 0; m < rows.count; ++m) {
    int32_t sum, largest;
    path.examine(rows.codes + m * rows.width, rows.width, &sum, &largest);
    rows.terms[m] = per_code * sum + constant;
    rows.largest = std::max(rows.largest, largest);
  }
}

// Blocks of so many rows of x stay in a core's cache while the panels of the weight pass by.
constexpr int64_t kBlock = 128;

// y = scaled product. `prepare(column, columns, panel, terms)` makes a panel of the weight's rows
// from `column` on, and what is added to the sums of each; `multiply` takes it.
template <typename Prepare, typename Multiply>
void multiply_all(const Rows& x, const Kernels& path, int64_t panel_bytes, int64_t stride,
                  int64_t most, const Tensor& weight_scales, const Prepare& prepare,
                  const Multiply& multiply, Tensor& y) {
  const Tasks tasks{x.count, y.size(1), kBlock};
  const float* const scales = static_cast<const float*>(weight_scales.data_ptr());
  const ScalarType type = y.scalar_type();
  void* const output = y.data_ptr();
  const int64_t work = kPanel * x.width * (std::min(x.count, kBlock) + 4);
  spread(tasks.count(), work, [&](int64_t begin, int64_t end) {
    const Scratch<uint8_t> panel(panel_bytes);
    const Scratch<int32_t> sums(kBlock * kPanel);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = tasks.first_row(task), column = tasks.first_column(task);
      const int columns = tasks.columns_of(task);
      int32_t terms[kPanel] = {};
      prepare(column, columns, panel.get(), terms);
      const IntegerTile tile{panel.get(), x.codes + row * x.width, tasks.rows_of(task),
                             x.width,     stride,                  columns,
                             most};
      multiply(tile, sums.get());
      for (int64_t m = 0; m < tile.rows; ++m) {
        float values[kPanel];
        path.scale(sums.get() + m * kPanel, columns, x.factor, x.terms[row + m], terms,
                   x.scales[row + m], scales + column, values);
        store_floats(values, columns, output, (row + m) * tasks.columns + column, type);
      }
    }
  });
}

Tensor packed_linear(Tensor x, Tensor x_scales, Tensor x_sums, Tensor weight,
                     Tensor weight_scales, int64_t levels, ScalarType dtype) {
  const char* op = "packed_linear";
  Rows rows = check_x(x, x_scales, 128, op);
  const int bits = container_bits(levels, op);
  check_two_dimensional(weight, op, "weight");
  const int64_t columns = weight.size(0), bytes = rows.width * bits / 8;
  check_matrix(weight, columns, bytes, ScalarType::Byte, op, "weight");
  check_multiple(columns, 16, op, "the weight's rows");
  check_vector(x_sums, rows.count, ScalarType::Int, op, "x_sums");
  check_vector(weight_scales, columns, ScalarType::Float, op, "weight_scales");
  check_floating(dtype, op, "dtype");
  Tensor y = torch::stable::new_empty(x, {rows.count, columns}, dtype);

  // Σ x·(2q - (levels - 1)) = 2·Σ x·q - (levels - 1)·Σ x
  const Kernels& path = kernels();
  rows.factor = 2;
  set_terms(rows, path, static_cast<int32_t>(1 - levels), 0);
  const uint8_t* const packed = static_cast<const uint8_t*>(weight.data_ptr());
  const auto prepare = [&](int64_t column, int count, uint8_t* panel, int32_t*) {
    path.unpack(packed + column * bytes, count * bytes, bits, panel);
  };
  const int64_t most = ((int64_t{1} << bits) - 1) * rows.largest;
  multiply_all(rows, path, kPanel * rows.width, rows.width, most, weight_scales, prepare,
               path.multiply_codes, y);
  return y;
}

// `ends`: by what the codes' values 2c + 1 differ from the codes, of x and of the weight.
struct Ends {
  bool x, weight;
};

Tensor int8_product(Rows& rows, const Tensor& weight, const Tensor& weight_scales, Ends ends,
                    ScalarType dtype, const char* op) {
  check_two_dimensional(weight, op, "weight");
  const int64_t columns = weight.size(0);
  check_matrix(weight, columns, rows.width, ScalarType::Char, op, "weight");
  check_multiple(columns, 8, op, "the weight's rows");
  check_vector(weight_scales, columns, ScalarType::Float, op, "weight_scales");
  check_floating(dtype, op, "dtype");
  Tensor y = torch::stable::new_empty(weight, {rows.count, columns}, dtype);

  // With a value f·c + t of a code c (f, t = 2, 1 of 256 levels, else 1, 0), on either side:
  // Σ v_x·v_w = f_x·f_w·Σ c_x·c_w + f_x·t_w·Σ c_x + f_w·t_x·Σ c_w + t_x·t_w·K.
  const Kernels& path = kernels();
  const int32_t x_factor = 1 + ends.x, weight_factor = 1 + ends.weight;
  rows.factor = x_factor * weight_factor;
  const int32_t constant = ends.x && ends.weight ? static_cast<int32_t>(rows.width) : 0;
  set_terms(rows, path, x_factor * ends.weight - rows.factor * path.int8_shift, constant);
  const int64_t stride = (rows.width + 63) / 64 * 64;
  const int8_t* const codes = static_cast<const int8_t*>(weight.data_ptr());
  const auto prepare = [&](int64_t column, int count, uint8_t* panel, int32_t* terms) {
    for (int c = 0; c < count; ++c) {
      const int8_t* const row = codes + (column + c) * rows.width;
      path.hold_int8(row, rows.width, panel + c * stride * path.int8_bytes);
      int32_t sum, largest;
      if (!ends.x) continue;
      path.examine(row, rows.width, &sum, &largest);
      terms[c] = weight_factor * sum;
    }
  };
  multiply_all(rows, path, kPanel * stride * path.int8_bytes, stride, 0, weight_scales, prepare,
               path.multiply_int8, y);
  return y;
}

Tensor int8_linear(Tensor x, Tensor x_scales, Tensor weight, Tensor weight_scales,
                   ScalarType dtype) {
  const char* op = "int8_linear";
  Rows rows = check_x(x, x_scales, 16, op);
  return int8_product(rows, weight, weight_scales, {false, false}, dtype, op);
}

constexpr int64_t kOffsetLevels = 256, kOffsetWidth = 32768;

void check_levels(int64_t levels, const char* op, const char* name) {
  for (const int64_t each : {2, 3, 4, 8, 16, 32, 64, 128, 256})
    if (levels == each) return;
  STD_TORCH_CHECK(false, op, ": ", name, " must be one of (2, 3, 4, 8, 16, 32, 64, 128, 256), not ",
                  levels);
}

Tensor int8_offset_linear(Tensor x, Tensor x_scales, Tensor x_sums, Tensor weight,
                          Tensor weight_scales, Tensor weight_sums, int64_t x_levels,
                          int64_t weight_levels, ScalarType dtype) {
  const char* op = "int8_offset_linear";
  Rows rows = check_x(x, x_scales, 16, op);
  STD_TORCH_CHECK(rows.width <= kOffsetWidth, op, ": the width ", rows.width, " exceeds ",
                  kOffsetWidth);
  check_vector(x_sums, rows.count, ScalarType::Int, op, "x_sums");
  check_two_dimensional(weight, op, "weight");
  check_vector(weight_sums, weight.size(0), ScalarType::Int, op, "weight_sums");
  check_levels(x_levels, op, "x_levels");
  check_levels(weight_levels, op, "weight_levels");
  const Ends ends{x_levels == kOffsetLevels, weight_levels == kOffsetLevels};
  return int8_product(rows, weight, weight_scales, ends, dtype, op);
}

Tensor unpack_codes(Tensor packed, int64_t levels) {
  const char* op = "unpack";
  check_two_dimensional(packed, op, "packed");
  check_dtype(packed, ScalarType::Byte, op, "packed");
  check_layout(packed, op, "packed");
  const int bits = container_bits(levels, op);
  const int64_t bytes = packed.size(1), width = bytes * 8 / bits;
  check_multiple(width, 32, op, "the unpacked width");
  Tensor values = torch::stable::new_empty(packed, {packed.size(0), width}, ScalarType::Char);
  const Kernels& path = kernels();
  const uint8_t* const from = static_cast<const uint8_t*>(packed.data_ptr());
  uint8_t* const to = static_cast<uint8_t*>(values.data_ptr());
  spread(packed.size(0), width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      path.unpack(from + row * bytes, bytes, bits, to + row * width);
      path.centre(to + row * width, width, static_cast<int>(levels));
    }
  });
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CPU, m) {
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
  m.impl("int8_offset_linear", TORCH_BOX(&int8_offset_linear));
  m.impl("unpack", TORCH_BOX(&unpack_codes));
}

}  // namespace questtrain::cpu
