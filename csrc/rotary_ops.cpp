// torch.ops.questtrain.split_rotary and join_rotary on CUDA: checks, outputs, launch.
#include <tuple>

#include "rotary.h"
#include "stable.h"

namespace questtrain {
namespace {

void check_angles(const Tensor& angles, const Tensor& x, int64_t length, int64_t width,
                  const char* op, const char* name) {
  check_matrix(angles, x, length, width, op, name);
  check_dtype(angles, ScalarType::Float, op, name);
}

RotaryArguments arguments_of(const Tensor& qkv, const Tensor& q, const Tensor& k, const Tensor& v,
                             const Tensor& cos, const Tensor& sin, const char* op) {
  const int64_t heads = q.size(2), width = q.size(3);
  STD_TORCH_CHECK(width % 16 == 0, op, ": the head width ", width, " must be a multiple of 16");
  check_angles(cos, q, q.size(1), width, op, "cos");
  check_angles(sin, q, q.size(1), width, op, "sin");
  return {qkv.data_ptr(),
          {q.data_ptr(), k.data_ptr(), v.data_ptr()},
          static_cast<const float*>(cos.data_ptr()),
          static_cast<const float*>(sin.data_ptr()),
          q.size(0) * q.size(1),
          static_cast<int>(q.size(1)),
          static_cast<int>(heads),
          static_cast<int>(width)};
}

std::tuple<Tensor, Tensor, Tensor> split_rotary(Tensor qkv, Tensor cos, Tensor sin,
                                                int64_t heads) {
  const char* op = "split_rotary";
  check_floating(qkv.scalar_type(), op, "qkv");
  check_layout(qkv, qkv, op, "qkv");
  STD_TORCH_CHECK(qkv.dim() == 3 && heads > 0 && qkv.size(2) % (3 * heads) == 0, op,
                  ": qkv must be [batch, tokens, 3·heads·width], not ", shape_of(qkv));
  const int64_t batch = qkv.size(0), length = qkv.size(1), width = qkv.size(2) / (3 * heads);
  const auto part = [&] { return torch::stable::new_empty(qkv, {batch, length, heads, width}); };
  Tensor q = part(), k = part(), v = part();
  const RotaryArguments arguments = arguments_of(qkv, q, k, v, cos, sin, op);
  if (arguments.tokens == 0) return {q, k, v};
  const DeviceGuard guard(qkv);
  check_cuda(rotary(arguments, false, output_of(qkv.scalar_type()), current_stream(qkv)), op);
  return {q, k, v};
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
  const RotaryArguments arguments = arguments_of(qkv, q, k, v, cos, sin, op);
  if (arguments.tokens == 0) return qkv;
  const DeviceGuard guard(q);
  check_cuda(rotary(arguments, true, output_of(q.scalar_type()), current_stream(q)), op);
  return qkv;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("split_rotary", TORCH_BOX(&split_rotary));
  m.impl("join_rotary", TORCH_BOX(&join_rotary));
}

}  // namespace questtrain
