// From a binding's arguments to a kernel's: what all quantizing ops share.
#pragma once

#include <cmath>
#include <optional>

#include "quantize.h"
#include "stable.h"

namespace questtrain {

// How to quantize.
struct Format {
  int64_t levels;
  double alpha;
  int64_t block;
  bool packed;
  std::optional<double> trust;
};

// What is quantized: checked tensors, and their part of the kernel's arguments.
struct Source {
  Operand operand;
  int64_t rows, width;
  QuantizeArguments arguments;
};

inline Source plain_source(const Check& check, const Tensor& x, const char* name = "x") {
  QuantizeArguments arguments{};
  arguments.x = check.matrix(name, x, kAny, kAny, kFloating);
  return {Operand::plain, x.size(0), x.size(1), arguments};
}

inline void set_norm(const Check& check, const char* name, const Tensor& x, const Tensor& weight,
                     double epsilon, QuantizeArguments& arguments) {
  constexpr ScalarType wide = ScalarType::Float;
  const ScalarType type = x.scalar_type();
  arguments.weight = type == wide ? check.vector(name, weight, x.size(1), {wide})
                                  : check.vector(name, weight, x.size(1), {wide, type});
  arguments.weight_is_float = weight.scalar_type() == wide;
  arguments.epsilon = static_cast<float>(epsilon);
}

// RMSNorm(x); `name` is the weight's.
inline Source norm_source(const Check& check, const char* name, const Tensor& x,
                          const Tensor& weight, double epsilon) {
  Source source = plain_source(check, x);
  source.operand = Operand::rmsnorm;
  set_norm(check, name, x, weight, epsilon, source.arguments);
  return source;
}

// RMSNorm(x + residual), and `hidden`, which is the sum.
inline Source add_norm_source(const Check& check, const char* name, const Tensor& x,
                              const Tensor& residual, const Tensor& weight, double epsilon,
                              Tensor& hidden) {
  Source source = plain_source(check, x);
  source.operand = Operand::add_rmsnorm;
  source.arguments.residual =
      check.matrix("residual", residual, source.rows, source.width, {x.scalar_type()});
  set_norm(check, name, x, weight, epsilon, source.arguments);
  hidden = torch::stable::new_empty(x, {source.rows, source.width});
  source.arguments.hidden = hidden.data_ptr();
  return source;
}

// silu(gate)·up of [gate | up].
inline Source swiglu_source(const Check& check, const Tensor& gate_up) {
  Source source = plain_source(check, gate_up, "gate_up");
  if (source.width % 2) check.fail("gate_up must be [rows, 2·width], not ", shape_of(gate_up));
  source.operand = Operand::swiglu;
  source.width /= 2;
  return source;
}

inline QuantizeArguments arguments_of(const Source& source, const Format& format) {
  QuantizeArguments arguments = source.arguments;
  arguments.rows = source.rows;
  arguments.width = static_cast<int>(source.width);
  arguments.levels = static_cast<int>(format.levels);
  arguments.block = static_cast<int>(format.block);
  arguments.alpha = static_cast<float>(format.alpha);
  arguments.trust = static_cast<float>(format.trust.value_or(0.0));
  arguments.steps = static_cast<float>(format.levels - 1);
  arguments.inverse_steps = 1.f / (format.levels - 1);
  arguments.inverse_width = 1.f / source.width;
  const bool offset = format.levels == kOffsetLevels;
  arguments.code_factor = offset ? 1 : 2;
  arguments.code_lift = offset ? 0 : static_cast<uint32_t>(129 - format.levels) * 0x01010101u;
  arguments.orthonormal = 1.f / std::sqrt(static_cast<float>(format.block));
  return arguments;
}

}  // namespace questtrain
