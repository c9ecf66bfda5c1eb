// From a binding's arguments to a kernel's: the checks that all quantizing ops share.
#pragma once

#include <cmath>
#include <optional>

#include "quantize.h"
#include "stable.h"

namespace questtrain {

// How to quantize: the arguments that all forms share.
struct Format {
  int64_t levels;
  double alpha;
  int64_t block;
  bool packed;
  std::optional<double> trust;
};

inline void check_format(const Format& format, int64_t width, const char* op,
                         int64_t most_levels = kOffsetLevels) {
  check_levels(format.levels, most_levels, op);
  check_block(width, format.block, op);
  check_scaled_rows(width, format.alpha, op);
}

inline void check_operand(const Tensor& x, const char* op, const char* name) {
  check_two_dimensional(x, op, name);
  check_floating(x.scalar_type(), op, name);
  check_layout(x, x, op, name);
}

inline QuantizeArguments norm_arguments(const Tensor& x, const Tensor& weight, double epsilon,
                                        const char* op, const char* name) {
  check_vector(weight, x, x.size(1), op, name);
  const bool is_float = weight.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(is_float || weight.scalar_type() == x.scalar_type(), op,
                  ": ", name, " must be float32 or of x's dtype ", name_of(x.scalar_type()),
                  ", not ", name_of(weight.scalar_type()));
  QuantizeArguments arguments{};
  arguments.weight = weight.data_ptr();
  arguments.weight_is_float = is_float;
  arguments.epsilon = static_cast<float>(epsilon);
  return arguments;
}

inline void check_residual(const Tensor& residual, const Tensor& x, const char* op) {
  check_matrix(residual, x, x.size(0), x.size(1), op, "residual");
  check_dtype(residual, x.scalar_type(), op, "residual");
}

// Half the width of [gate | up].
inline int64_t swiglu_width(const Tensor& gate_up, const char* op) {
  check_operand(gate_up, op, "gate_up");
  STD_TORCH_CHECK(gate_up.size(1) % 2 == 0, op, ": gate_up must be [rows, 2·width], not ",
                  shape_of(gate_up));
  return gate_up.size(1) / 2;
}

inline void set_format(QuantizeArguments& arguments, const Format& format, int64_t rows,
                       int64_t width) {
  arguments.rows = rows;
  arguments.width = static_cast<int>(width);
  arguments.levels = static_cast<int>(format.levels);
  arguments.block = static_cast<int>(format.block);
  arguments.alpha = static_cast<float>(format.alpha);
  arguments.trust = static_cast<float>(format.trust.value_or(0.0));
  arguments.steps = static_cast<float>(format.levels - 1);
  arguments.inverse_steps = 1.f / (format.levels - 1);
  arguments.inverse_width = 1.f / width;
  const bool offset = format.levels == kOffsetLevels;
  arguments.code_factor = offset ? 1 : 2;
  arguments.code_lift = offset ? 0 : static_cast<uint32_t>(129 - format.levels) * 0x01010101u;
  arguments.orthonormal = 1.f / std::sqrt(static_cast<float>(format.block));
}

}  // namespace questtrain
