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

Rows rows_of(const Check& check, const ProductOperands& operands) {
  // Every sum of so many products of int8 codes stays below 2^31.
  check.width_at_most(operands.width, (1 << 17) - 1);
  return {static_cast<const int8_t*>(operands.x), operands.x_scales, operands.rows, operands.width,
          1, {}};
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
                  int64_t most, const float* scales, const Prepare& prepare,
                  const Multiply& multiply, Tensor& y) {
  const Tasks tasks{x.count, y.size(1), kBlock};
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
  const Check check("packed_linear", x);
  const int bits = check.packed_levels("levels", levels);
  const ProductOperands operands = product_operands<int8_t, uint8_t>(
      check, x, x_scales, 1, weight, weight_scales, bits, {128, 16}, dtype);
  check.vector<int32_t>("x_sums", x_sums, operands.rows);
  Rows rows = rows_of(check, operands);
  const int64_t columns = operands.columns, bytes = rows.width * bits / 8;
  Tensor y = torch::stable::new_empty(x, {rows.count, columns}, dtype);

  // Σ x·(2q - (levels - 1)) = 2·Σ x·q - (levels - 1)·Σ x
  const Kernels& path = kernels();
  rows.factor = 2;
  set_terms(rows, path, static_cast<int32_t>(1 - levels), 0);
  const uint8_t* const packed = static_cast<const uint8_t*>(operands.weight);
  const auto prepare = [&](int64_t column, int count, uint8_t* panel, int32_t*) {
    path.unpack(packed + column * bytes, count * bytes, bits, panel);
  };
  const int64_t most = ((int64_t{1} << bits) - 1) * rows.largest;
  multiply_all(rows, path, kPanel * rows.width, rows.width, most, operands.weight_scales, prepare,
               path.multiply_codes, y);
  return y;
}

// `ends`: by what the codes' values 2c + 1 differ from the codes, of x and of the weight.
struct Ends {
  bool x, weight;
};

ProductOperands int8_operands(const Check& check, const Tensor& x, const Tensor& x_scales,
                              const Tensor& weight, const Tensor& weight_scales,
                              ScalarType dtype) {
  return product_operands<int8_t, int8_t>(check, x, x_scales, 1, weight, weight_scales, 8, {16, 8},
                                          dtype);
}

Tensor int8_product(const Check& check, const ProductOperands& operands, Ends ends,
                    ScalarType dtype) {
  Rows rows = rows_of(check, operands);
  Tensor y = torch::stable::new_empty(check.like, {rows.count, operands.columns}, dtype);

  // With a value f·c + t of a code c (f, t = 2, 1 of 256 levels, else 1, 0), on either side:
  // Σ v_x·v_w = f_x·f_w·Σ c_x·c_w + f_x·t_w·Σ c_x + f_w·t_x·Σ c_w + t_x·t_w·K.
  const Kernels& path = kernels();
  const int32_t x_factor = 1 + ends.x, weight_factor = 1 + ends.weight;
  rows.factor = x_factor * weight_factor;
  const int32_t constant = ends.x && ends.weight ? static_cast<int32_t>(rows.width) : 0;
  set_terms(rows, path, x_factor * ends.weight - rows.factor * path.int8_shift, constant);
  const int64_t stride = (rows.width + 63) / 64 * 64;
  const int8_t* const codes = static_cast<const int8_t*>(operands.weight);
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
  multiply_all(rows, path, kPanel * stride * path.int8_bytes, stride, 0, operands.weight_scales,
               prepare, path.multiply_int8, y);
  return y;
}

Tensor int8_linear(Tensor x, Tensor x_scales, Tensor weight, Tensor weight_scales,
                   ScalarType dtype) {
  const Check check("int8_linear", x);
  return int8_product(check, int8_operands(check, x, x_scales, weight, weight_scales, dtype),
                      {false, false}, dtype);
}

Tensor int8_offset_linear(Tensor x, Tensor x_scales, Tensor x_sums, Tensor weight,
                          Tensor weight_scales, Tensor weight_sums, int64_t x_levels,
                          int64_t weight_levels, ScalarType dtype) {
  const Check check("int8_offset_linear", x);
  const ProductOperands operands = int8_operands(check, x, x_scales, weight, weight_scales, dtype);
  check.vector<int32_t>("x_sums", x_sums, operands.rows);
  check.vector<int32_t>("weight_sums", weight_sums, operands.columns);
  check.levels("x_levels", x_levels);
  check.levels("weight_levels", weight_levels);
  check.width_at_most(operands.width, kLargestWidth);
  const Ends ends{x_levels == kOffsetLevels, weight_levels == kOffsetLevels};
  return int8_product(check, operands, ends, dtype);
}

Tensor unpack_codes(Tensor packed, int64_t levels) {
  const Check check("unpack", packed);
  const CodeRows codes = packed_codes(check, packed, levels);
  const int bits = codes.bits;
  const int64_t bytes = packed.size(1), width = codes.width;
  Tensor values = torch::stable::new_empty(packed, {packed.size(0), width}, ScalarType::Char);
  const Kernels& path = kernels();
  const uint8_t* const from = static_cast<const uint8_t*>(codes.start);
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
