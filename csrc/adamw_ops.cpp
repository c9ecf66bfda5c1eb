// torch.ops.questtrain.adamw_ on CUDA: checks, launches.
#include <optional>
#include <vector>

#include "adamw.h"
#include "stable.h"

namespace questtrain {
namespace {

constexpr const char* op = "adamw_";

using Tensors = std::vector<Tensor>;

void check_like(const Tensor& tensor, const Tensor& weight, const char* name) {
  check_dtype(tensor, ScalarType::Float, op, name);
  check_device(tensor, weight, op, name);
  STD_TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, " must be contiguous");
  STD_TORCH_CHECK(tensor.numel() == weight.numel(), op, ": ", name, " must be ", shape_of(weight),
                  ", not ", shape_of(tensor));
}

void check_scalar(const Tensor& tensor, const Tensor& weight, const char* name) {
  check_dtype(tensor, ScalarType::Float, op, name);
  check_device(tensor, weight, op, name);
  STD_TORCH_CHECK(tensor.dim() == 0, op, ": ", name, " must be a scalar, not of shape ",
                  shape_of(tensor));
}

void adamw_(Tensors weights, Tensors grads, Tensors means, Tensors squares, Tensors steps,
            std::optional<Tensor> divisor, double lr, double beta1, double beta2, double eps,
            double weight_decay) {
  for (const Tensors* others : {&grads, &means, &squares, &steps})
    STD_TORCH_CHECK(others->size() == weights.size(), op, ": ", weights.size(),
                    " weights need as many of everything, not ", others->size());
  if (weights.empty()) return;
  AdamWArguments a{};
  if (divisor) {
    check_scalar(*divisor, weights[0], "divisor");
    a.divisor = static_cast<const float*>(divisor->data_ptr());
  }
  a.lr = lr;
  a.beta1 = beta1;
  a.beta2 = beta2;
  a.eps = eps;
  a.weight_decay = weight_decay;
  const DeviceGuard guard(weights[0]);
  const cudaStream_t stream = current_stream(weights[0]);
  unsigned blocks = 0;
  const auto launch = [&] {
    if (a.count) check_cuda(adamw(a, blocks, stream), op);
    a.count = 0;
    blocks = 0;
  };
  for (size_t i = 0; i < weights.size(); ++i) {
    check_like(weights[i], weights[i], "weights");
    check_device(weights[i], weights[0], op, "weights");
    check_like(grads[i], weights[i], "grads");
    check_like(means[i], weights[i], "means");
    check_like(squares[i], weights[i], "squares");
    check_scalar(steps[i], weights[i], "steps");
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i].numel() == 0) continue;
    a.tensors[a.count++] = {static_cast<float*>(weights[i].data_ptr()),
                            static_cast<const float*>(grads[i].data_ptr()),
                            static_cast<float*>(means[i].data_ptr()),
                            static_cast<float*>(squares[i].data_ptr()),
                            static_cast<const float*>(steps[i].data_ptr()),
                            weights[i].numel(),
                            blocks};
    blocks += adamw_blocks(weights[i].numel());
    if (a.count == kAdamWTensors) launch();
  }
  launch();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("adamw_", TORCH_BOX(&adamw_));
}

}  // namespace questtrain
