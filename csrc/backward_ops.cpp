// torch.ops.questtrain.*_backward on CUDA: checks, outputs, launches.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <optional>
#include <tuple>

#include "backward.h"
#include "quantize_arguments.h"

namespace questtrain {
namespace {

// What all backwards share.
BackwardArguments masked_arguments(const Check& check, const Tensor& grad, const Tensor& mask,
                                   int64_t width, int64_t block) {
  const MaskedGradient masked = masked_gradient(check, grad, mask, width, block);
  check_size(check, masked.rows, masked.width);
  BackwardArguments arguments{};
  arguments.grad = masked.grad;
  arguments.mask = masked.mask;
  arguments.rows = masked.rows;
  arguments.width = static_cast<int>(masked.width);
  arguments.block = static_cast<int>(block);
  arguments.inverse_width = 1.f / arguments.width;
  arguments.orthonormal = 1.f / std::sqrt(static_cast<float>(block));
  return arguments;
}

void run(const Check& check, Origin origin, const BackwardArguments& arguments, ScalarType type) {
  const auto kernel = by_element(type, launch_backward<__nv_bfloat16>, launch_backward<__half>,
                                 launch_backward<float>);
  launch_op(check, kernel, origin, arguments);
}

Tensor hadamard_backward(Tensor grad, Tensor mask, int64_t block) {
  const Check check("hadamard_backward", grad);
  BackwardArguments arguments = masked_arguments(check, grad, mask, kAny, block);
  Tensor result = torch::stable::new_empty(grad, {grad.size(0), grad.size(1)});
  arguments.result = result.data_ptr();
  if (arguments.rows) run(check, Origin::plain, arguments, grad.scalar_type());
  return result;
}

Tensor swiglu_backward(Tensor grad, Tensor mask, Tensor gate_up, int64_t block) {
  const Check check("swiglu_backward", grad);
  const int64_t width = swiglu_source(Check("swiglu_backward", gate_up), gate_up).width;
  BackwardArguments arguments = masked_arguments(check, grad, mask, width, block);
  arguments.x =
      check.matrix("gate_up", gate_up, arguments.rows, 2 * width, {grad.scalar_type()});
  Tensor result = torch::stable::new_empty(gate_up, {gate_up.size(0), gate_up.size(1)});
  arguments.result = result.data_ptr();
  if (arguments.rows) run(check, Origin::swiglu, arguments, grad.scalar_type());
  return result;
}

std::tuple<Tensor, Tensor> rmsnorm_backward(Tensor grad, Tensor mask, Tensor x, Tensor weight,
                                            double epsilon, int64_t block,
                                            std::optional<Tensor> residual_grad) {
  const Check check("rmsnorm_backward", grad);
  BackwardArguments arguments = masked_arguments(check, grad, mask, kAny, block);
  const int64_t rows = arguments.rows, width = arguments.width;
  arguments.x = check.matrix("x", x, rows, width, {grad.scalar_type()});
  const QuantizeArguments norm = norm_source(check, "weight", x, weight, epsilon).arguments;
  arguments.weight = norm.weight;
  arguments.weight_is_float = norm.weight_is_float;
  arguments.epsilon = norm.epsilon;
  if (residual_grad)
    arguments.residual_grad =
        check.matrix("residual_grad", *residual_grad, rows, width, {x.scalar_type()});
  check.width_at_most(width, kLargestNormWidth);
  Tensor grad_x = torch::stable::new_empty(x, {rows, width});
  Tensor grad_weight = torch::stable::new_empty(x, {width}, ScalarType::Float);
  if (rows == 0) return {grad_x, torch::stable::zero_(grad_weight)};

  const DeviceGuard guard(grad);
  arguments.grid = norm_grid(rows, arguments.width);
  Tensor of_blocks =
      torch::stable::new_empty(x, {arguments.grid.blocks, width}, ScalarType::Float);
  arguments.result = grad_x.data_ptr();
  arguments.weight_grads = static_cast<float*>(of_blocks.data_ptr());
  run(check, Origin::rmsnorm, arguments, grad.scalar_type());
  launch_op(check, sum_weight_grads, arguments.weight_grads,
         static_cast<float*>(grad_weight.data_ptr()), arguments.grid.blocks, arguments.width);
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("hadamard_backward", TORCH_BOX(&hadamard_backward));
  m.impl("rmsnorm_backward", TORCH_BOX(&rmsnorm_backward));
  m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
}

}  // namespace questtrain
