// torch.ops.questtrain.decode_attention on CUDA: checks, output, launch.
#include <utility>

#include "decode_attention.h"
#include "stable.h"

namespace questtrain {
namespace {

constexpr const char* op = "decode_attention";

bool is_aligned(int64_t bytes) { return bytes % 16 == 0; }

// q, k or v: rows of heads, which may lie apart.
void check_rows(const Tensor& x, const Tensor& q, const char* name) {
  check_two_dimensional(x, op, name);
  STD_TORCH_CHECK(x.size(0) == q.size(0) && x.size(1) == q.size(1), op, ": ", name, " must be ",
                  shape_of(q), ", not ", shape_of(x));
  check_dtype(x, q.scalar_type(), op, name);
  check_device(x, q, op, name);
  STD_TORCH_CHECK(x.size(1) <= 1 || x.stride(1) == 1, op, ": ", name,
                  " must be contiguous in its last dimension");
  const int64_t bytes = x.scalar_type() == ScalarType::Float ? 4 : 2;
  STD_TORCH_CHECK(is_aligned(reinterpret_cast<intptr_t>(x.data_ptr())) &&
                      (x.size(0) <= 1 || is_aligned(x.stride(0) * bytes)),
                  op, ": ", name, "'s rows must start at multiples of 16 bytes");
}

void check_cache(const Tensor& cache, const Tensor& keys, const Tensor& q, const char* name) {
  STD_TORCH_CHECK(cache.dim() == 4, op, ": ", name, " must have 4 dimensions, not shape ",
                  shape_of(cache));
  for (int64_t i = 0; i < 4; ++i)
    STD_TORCH_CHECK(cache.size(i) == keys.size(i), op, ": ", name, " must be ", shape_of(keys),
                    ", not ", shape_of(cache));
  STD_TORCH_CHECK(cache.size(0) == q.size(0) && cache.size(1) * cache.size(3) == q.size(1), op,
                  ": ", name, " must be [", q.size(0),
                  ", heads, capacity, width] with heads·width ", q.size(1), ", not ",
                  shape_of(cache));
  STD_TORCH_CHECK(is_head_width(cache.size(3)), op, ": the head width ", cache.size(3),
                  " must be one of 32, 64, 128, 256");
  STD_TORCH_CHECK(cache.size(2) > 0 && cache.size(2) <= kLargestCapacity, op, ": ", name,
                  " must have 1 to ", kLargestCapacity, " places, not ", cache.size(2));
  check_dtype(cache, q.scalar_type(), op, name);
  check_layout(cache, q, op, name);
}

void check_position(const Tensor& position, const Tensor& q) {
  STD_TORCH_CHECK(position.dim() == 0, op, ": position must be a scalar, not of shape ",
                  shape_of(position));
  check_dtype(position, ScalarType::Long, op, "position");
  check_device(position, q, op, "position");
}

Tensor attend(Tensor q, Tensor k, Tensor v, Tensor keys, Tensor values, Tensor position,
              Tensor cos, Tensor sin) {
  check_floating(q.scalar_type(), op, "q");
  check_rows(q, q, "q");
  check_rows(k, q, "k");
  check_rows(v, q, "v");
  check_cache(keys, keys, q, "keys");
  check_cache(values, keys, q, "values");
  check_position(position, q);
  for (const auto& [angles, name] : {std::pair{&cos, "cos"}, std::pair{&sin, "sin"}}) {
    check_vector(*angles, q, keys.size(3), op, name);
    check_dtype(*angles, ScalarType::Float, op, name);
  }
  Tensor y = torch::stable::new_empty(q, {q.size(0), q.size(1)});
  if (q.size(0) * q.size(1) == 0) return y;

  DecodeAttentionArguments a{};
  a.q = q.data_ptr(), a.k = k.data_ptr(), a.v = v.data_ptr();
  a.q_stride = q.stride(0), a.k_stride = k.stride(0), a.v_stride = v.stride(0);
  a.keys = keys.data_ptr(), a.values = values.data_ptr();
  a.position = static_cast<const int64_t*>(position.data_ptr());
  a.cos = static_cast<const float*>(cos.data_ptr());
  a.sin = static_cast<const float*>(sin.data_ptr());
  a.y = y.data_ptr();
  a.batch = static_cast<int>(keys.size(0));
  a.heads = static_cast<int>(keys.size(1));
  a.capacity = static_cast<int>(keys.size(2));
  a.width = static_cast<int>(keys.size(3));
  a.dtype = output_of(q.scalar_type());
  const DeviceGuard guard(q);
  check_cuda(decode_attention(a, current_stream(q)), op);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("decode_attention", TORCH_BOX(&attend));
}

}  // namespace questtrain
