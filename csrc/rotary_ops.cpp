// torch.ops.questtrain.rotary_ and join_rotary on CUDA: checks, outputs, launch.
#include <utility>

#include "rotary.h"
#include "stable.h"

namespace questtrain {
namespace {

// For x [batch, tokens, …] of so many heads, but for the tensors themselves.
RotaryArguments arguments_of(const Check& check, const Tensor& x, int64_t heads, int64_t width,
                             const Tensor& cos, const Tensor& sin) {
  const int64_t length = x.size(1);
  check.multiple("the head width", width, 16);
  RotaryArguments arguments{};
  arguments.cos = check.matrix<float>("cos", cos, length, width);
  arguments.sin = check.matrix<float>("sin", sin, length, width);
  arguments.tokens = x.size(0) * length;
  arguments.length = static_cast<int>(length);
  arguments.heads = static_cast<int>(heads);
  arguments.width = static_cast<int>(width);
  return arguments;
}

void rotary_(Tensor qkv, Tensor cos, Tensor sin, int64_t heads) {
  const Check check("rotary_", qkv);
  if (qkv.dim() != 3 || heads < 1 || qkv.size(2) % (3 * heads))
    check.fail("qkv must be [batch, tokens, 3·", heads, "·width], not ", shape_of(qkv));
  void* data = check.aligned("qkv", qkv, kFloating);
  RotaryArguments arguments =
      arguments_of(check, qkv, heads, qkv.size(2) / (3 * heads), cos, sin);
  arguments.qkv = data;
  if (arguments.tokens) launch(check, rotary, arguments, output_of(qkv.scalar_type()));
}

Tensor join_rotary(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin) {
  const Check check("join_rotary", q);
  const void* parts[3];
  int i = 0;
  for (const auto& [name, part] : {std::pair{"q", &q}, {"k", &k}, {"v", &v}}) {
    if (part->dim() != 4 || !same_shape(*part, q))
      check.fail(name, " must be [batch, tokens, heads, width] like q, not ", shape_of(*part));
    parts[i++] = part == &q ? check.aligned(name, q, kFloating)
                            : check.aligned(name, *part, {q.scalar_type()});
  }
  const int64_t heads = q.size(2), width = q.size(3);
  RotaryArguments arguments = arguments_of(check, q, heads, width, cos, sin);
  Tensor qkv = torch::stable::new_empty(q, {q.size(0), q.size(1), 3 * heads * width});
  arguments.qkv = qkv.data_ptr();
  std::copy(parts, parts + 3, arguments.parts);
  if (arguments.tokens) launch(check, rotary, arguments, output_of(q.scalar_type()));
  return qkv;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("rotary_", TORCH_BOX(&rotary_));
  m.impl("join_rotary", TORCH_BOX(&join_rotary));
}

}  // namespace questtrain
