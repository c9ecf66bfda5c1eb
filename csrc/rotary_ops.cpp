// torch.ops.questtrain.rotary_ and join_rotary on CUDA: checks, outputs, launch.

#include "rotary.h"
#include "stable.h"

namespace questtrain {
namespace {

void check_angles(const Tensor& angles, const Tensor& x, int64_t length, int64_t width,
                  const char* op, const char* name) {
  check_matrix(angles, x, length, width, op, name);
  check_dtype(angles, ScalarType::Float, op, name);
}

// But for the parts.
RotaryArguments arguments_of(const Tensor& qkv, int64_t heads, const Tensor& cos,
                             const Tensor& sin, const char* op) {
  const int64_t length = qkv.size(1), width = qkv.size(2) / (3 * heads);
  STD_TORCH_CHECK(width % 16 == 0, op, ": the head width ", width, " must be a multiple of 16");
  check_angles(cos, qkv, length, width, op, "cos");
  check_angles(sin, qkv, length, width, op, "sin");
  return {qkv.data_ptr(),
          {},
          static_cast<const float*>(cos.data_ptr()),
          static_cast<const float*>(sin.data_ptr()),
          qkv.size(0) * length,
          static_cast<int>(length),
          static_cast<int>(heads),
          static_cast<int>(width)};
}

void rotary_(Tensor qkv, Tensor cos, Tensor sin, int64_t heads) {
  const char* op = "rotary_";
  check_floating(qkv.scalar_type(), op, "qkv");
  check_layout(qkv, qkv, op, "qkv");
  STD_TORCH_CHECK(qkv.dim() == 3 && heads > 0 && qkv.size(2) % (3 * heads) == 0, op,
                  ": qkv must be [batch, tokens, 3·heads·width], not ", shape_of(qkv));
  const RotaryArguments arguments = arguments_of(qkv, heads, cos, sin, op);
  if (arguments.tokens == 0) return;
  const DeviceGuard guard(qkv);
  check_cuda(rotary(arguments, output_of(qkv.scalar_type()), current_stream(qkv)), op);
}

Tensor join_rotary(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin) {
  const char* op = "join_rotary";
  check_floating(q.scalar_type(), op, "q");
  const Tensor* parts[] = {&q, &k, &v};
  const char* names[] = {"q", "k", "v"};
  for (int i = 0; i < 3; ++i) {
    bool same = q.dim() == 4 && parts[i]->dim() == 4;
    for (int d = 0; same && d < 4; ++d) same = parts[i]->size(d) == q.size(d);
    STD_TORCH_CHECK(same, op, ": ", names[i], " must be [batch, tokens, heads, width] like q, not ",
                    shape_of(*parts[i]));
    check_dtype(*parts[i], q.scalar_type(), op, names[i]);
    check_layout(*parts[i], q, op, names[i]);
  }
  Tensor qkv = torch::stable::new_empty(q, {q.size(0), q.size(1), 3 * q.size(2) * q.size(3)});
  RotaryArguments arguments = arguments_of(qkv, q.size(2), cos, sin, op);
  for (int i = 0; i < 3; ++i) arguments.parts[i] = parts[i]->data_ptr();
  if (arguments.tokens == 0) return qkv;
  const DeviceGuard guard(q);
  check_cuda(rotary(arguments, output_of(q.scalar_type()), current_stream(q)), op);
  return qkv;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("rotary_", TORCH_BOX(&rotary_));
  m.impl("join_rotary", TORCH_BOX(&join_rotary));
}

}  // namespace questtrain
