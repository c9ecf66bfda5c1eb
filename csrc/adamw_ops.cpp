// torch.ops.questtrain.adamw_ on CUDA: checks, launches.
#include <optional>
#include <utility>
#include <vector>

#include "adamw.h"
#include "stable.h"

namespace questtrain {
namespace {

using Tensors = std::vector<Tensor>;
constexpr Types kType = {ScalarType::Float};

void check_tensors(const Check& check, const Tensors& weights, const Tensors& grads,
                   const Tensors& means, const Tensors& squares, const Tensors& steps) {
  for (const Tensors* others : {&grads, &means, &squares, &steps})
    if (others->size() != weights.size())
      check.fail(weights.size(), " weights need as many of everything, not ", others->size());
  for (size_t i = 0; i < weights.size(); ++i) {
    check.dense("weights", weights[i], kType);
    for (const auto& [name, others] :
         {std::pair{"grads", &grads}, {"means", &means}, {"squares", &squares}}) {
      check.dense(name, (*others)[i], kType);
      check.shaped_like(name, (*others)[i], weights[i]);
    }
    check.scalar<float>("steps", steps[i]);
  }
}

void adamw_(Tensors weights, Tensors grads, Tensors means, Tensors squares, Tensors steps,
            std::optional<Tensor> divisor, double lr, double beta1, double beta2, double eps,
            double weight_decay) {
  const Tensor none;
  const Check check("adamw_", weights.empty() ? none : weights[0]);
  check_tensors(check, weights, grads, means, squares, steps);
  if (weights.empty()) return;
  AdamWArguments a{};
  if (divisor) a.divisor = check.scalar<float>("divisor", *divisor);
  a.lr = lr;
  a.beta1 = beta1;
  a.beta2 = beta2;
  a.eps = eps;
  a.weight_decay = weight_decay;
  unsigned blocks = 0;
  const auto run = [&] {
    if (a.count) launch(check, adamw, a, blocks);
    a.count = 0;
    blocks = 0;
  };
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
    if (a.count == kAdamWTensors) run();
  }
  run();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("adamw_", TORCH_BOX(&adamw_));
}

}  // namespace questtrain
