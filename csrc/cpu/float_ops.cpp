// torch.ops.questtrain.packed_weight_linear on the CPU: float activations on packed weights.
#include "products.h"

namespace questtrain::cpu {
namespace {

// The weight's rows become floats once for so many rows of x.
constexpr int64_t kBlock = 1024;

// Rows of this many floats more than a power of two do not fall on the same cache sets.
constexpr int64_t kPadding = 16;

// x in fp32, each block of its rows rotated.
void rotated_rows(const Tensor& x, int64_t block, const Kernels& path, int64_t stride, float* to) {
  const int64_t width = x.size(1);
  const void* const from = x.data_ptr();
  const ScalarType type = x.scalar_type();
  spread(x.size(0), 4 * width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      load_floats(from, row * width, width, type, to + row * stride);
      if (block > 1) path.rotate(to + row * stride, width, static_cast<int>(block));
    }
  });
}

struct Weight {
  const uint8_t* packed;
  const float* scales;
  int64_t columns, bytes;  // of y; of a row
  int bits, levels;
};

// y from rows in fp32, `stride` floats apart.
void multiply_all(const float* values, int64_t stride, int64_t width, const Weight& weight,
                  const Kernels& path, Tensor& y) {
  const Tasks tasks{y.size(0), weight.columns, kBlock};
  const int64_t most = std::min(tasks.rows, kBlock);
  void* const output = y.data_ptr();
  const ScalarType type = y.scalar_type();
  spread(tasks.count(), 4 * kPanel * width * (most + 2), [&](int64_t begin, int64_t end) {
    const Scratch<uint8_t> panel(kPanel * width);
    const Scratch<float> floats(kPanel * width), sums(most * kPanel);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = tasks.first_row(task), column = tasks.first_column(task);
      const int columns = tasks.columns_of(task);  // behind them a panel may hold anything
      path.unpack(weight.packed + column * weight.bytes, columns * weight.bytes, weight.bits,
                  panel.get());
      path.centre(panel.get(), columns * width, weight.levels);
      const FloatTile tile{reinterpret_cast<const int8_t*>(panel.get()), values + row * stride,
                           tasks.rows_of(task), width, stride, floats.get()};
      path.multiply_floats(tile, sums.get());
      for (int64_t m = 0; m < tile.rows; ++m) {
        float* const result = sums.get() + m * kPanel;
        for (int c = 0; c < columns; ++c) result[c] *= weight.scales[column + c];
        store_floats(result, columns, output, (row + m) * weight.columns + column, type);
      }
    }
  });
}

Tensor packed_weight_linear(Tensor x, Tensor weight, Tensor weight_scales, int64_t levels,
                            int64_t block) {
  const Check check("packed_weight_linear", x);
  check.matrix("x", x, kAny, kAny, kFloating);
  const int bits = check.packed_levels("levels", levels);
  const int64_t rows = x.size(0), width = x.size(1), bytes = width * bits / 8;
  const uint8_t* const packed = check.matrix<uint8_t>("weight", weight, kAny, bytes);
  const int64_t columns = weight.size(0), stride = width + kPadding;
  const float* const scales = check.vector<float>("weight_scales", weight_scales, columns);
  check.multiple("the width", width, 32);
  check.multiple("the weight's rows", columns, 8);
  check.block(width, block);
  Tensor y = torch::stable::new_empty(x, {rows, columns});

  const Kernels& path = kernels();
  const Scratch<float> values(rows * stride);
  rotated_rows(x, block, path, stride, values.get());
  const Weight operand{packed, scales, columns, bytes, bits, static_cast<int>(levels)};
  multiply_all(values.get(), stride, width, operand, path, y);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CPU, m) {
  m.impl("packed_weight_linear", TORCH_BOX(&packed_weight_linear));
}

}  // namespace questtrain::cpu
