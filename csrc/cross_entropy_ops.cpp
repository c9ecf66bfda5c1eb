// torch.ops.questtrain.cross_entropy_ on CUDA: checks, output, launch.
#include <limits>

#include "cross_entropy.h"
#include "stable.h"

namespace questtrain {
namespace {

Tensor cross_entropy_(Tensor logits, Tensor targets, int64_t ignored) {
  const Check check("cross_entropy_", logits);
  CrossEntropyArguments a{};
  a.logits = check.matrix("logits", logits, kAny, kAny, kFloating);
  if (!logits.size(1)) check.fail("logits must have columns, not shape ", shape_of(logits));
  constexpr int64_t most = std::numeric_limits<int>::max();
  if (logits.size(0) > most || logits.size(1) > most)
    check.fail("logits must have at most ", most, " rows and columns, not ", shape_of(logits));
  // They may start anywhere, for they are read one by one: a chunk's are a slice.
  check.one_dimensional("targets", targets, logits.size(0));
  a.targets = static_cast<const int64_t*>(check.dense("targets", targets, {ScalarType::Long}));
  Tensor losses = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Float);
  if (logits.size(0) == 0) return losses;

  a.losses = static_cast<float*>(losses.data_ptr());
  a.rows = logits.size(0);
  a.width = static_cast<int>(logits.size(1));
  a.ignored = ignored;
  a.dtype = output_of(logits.scalar_type());
  launch(check, cross_entropy, a);
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("cross_entropy_", TORCH_BOX(&cross_entropy_));
}

}  // namespace questtrain
