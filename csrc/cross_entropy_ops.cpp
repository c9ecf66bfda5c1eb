// torch.ops.questtrain.cross_entropy_ on CUDA: checks, output, launch.
#include <limits>

#include "cross_entropy.h"
#include "stable.h"

namespace questtrain {
namespace {

constexpr const char* op = "cross_entropy_";

void check_logits(const Tensor& logits) {
  check_two_dimensional(logits, op, "logits");
  check_floating(logits.scalar_type(), op, "logits");
  check_layout(logits, logits, op, "logits");
  constexpr int64_t most = std::numeric_limits<int>::max();
  STD_TORCH_CHECK(logits.size(0) <= most, op, ": logits must have at most ", most, " rows, not ",
                  logits.size(0));
  STD_TORCH_CHECK(logits.size(1) > 0 && logits.size(1) <= most, op, ": logits must have 1 to ",
                  most, " columns, not ", logits.size(1));
}

// They may start anywhere, for they are read one by one: a chunk's are a slice.
void check_targets(const Tensor& targets, const Tensor& logits) {
  STD_TORCH_CHECK(targets.dim() == 1 && targets.size(0) == logits.size(0), op,
                  ": targets must be [", logits.size(0), "], not ", shape_of(targets));
  check_dtype(targets, ScalarType::Long, op, "targets");
  check_device(targets, logits, op, "targets");
  STD_TORCH_CHECK(targets.is_contiguous(), op, ": targets must be contiguous");
}

Tensor cross_entropy_(Tensor logits, Tensor targets, int64_t ignored) {
  check_logits(logits);
  check_targets(targets, logits);
  Tensor losses = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Float);
  if (logits.size(0) == 0) return losses;

  CrossEntropyArguments a{};
  a.logits = logits.data_ptr();
  a.targets = static_cast<const int64_t*>(targets.data_ptr());
  a.losses = static_cast<float*>(losses.data_ptr());
  a.rows = logits.size(0);
  a.width = static_cast<int>(logits.size(1));
  a.ignored = ignored;
  a.dtype = output_of(logits.scalar_type());
  const DeviceGuard guard(logits);
  check_cuda(cross_entropy(a, current_stream(logits)), op);
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("cross_entropy_", TORCH_BOX(&cross_entropy_));
}

}  // namespace questtrain
