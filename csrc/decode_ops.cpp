// torch.ops.questtrain.decode_attention on CUDA: checks, output, launch.
#include "decode_attention.h"
#include "stable.h"

namespace questtrain {
namespace {

bool is_aligned(int64_t bytes) { return bytes % 16 == 0; }

// q, k or v: rows of heads, which may lie apart.
const void* check_rows(const Check& check, const char* name, const Tensor& x, const Tensor& q) {
  check.two_dimensional(name, x);
  check.shaped_like(name, x, q);
  check.kind(name, x, {q.scalar_type()});
  if (x.size(1) > 1 && x.stride(1) != 1)
    check.fail(name, " must be contiguous in its last dimension");
  const int64_t bytes = x.scalar_type() == ScalarType::Float ? 4 : 2;
  if (!is_aligned(reinterpret_cast<intptr_t>(x.data_ptr())) ||
      (x.size(0) > 1 && !is_aligned(x.stride(0) * bytes)))
    check.fail(name, "'s rows must start at multiples of 16 bytes");
  return x.data_ptr();
}

void* check_cache(const Check& check, const char* name, const Tensor& cache, const Tensor& keys,
                  const Tensor& q) {
  if (cache.dim() != 4) check.fail(name, " must have 4 dimensions, not shape ", shape_of(cache));
  check.shaped_like(name, cache, keys);
  const int64_t capacity = cache.size(2), width = cache.size(3);
  if (cache.size(0) != q.size(0) || cache.size(1) * width != q.size(1))
    check.fail(name, " must be [", q.size(0), ", heads, capacity, width] with heads·width ",
               q.size(1), ", not ", shape_of(cache));
  if (!capacity || !width || width % 2)
    check.fail(name, " must have places and an even width, not shape ", shape_of(cache));
  void* data = check.aligned(name, cache, {q.scalar_type()});
  if (!is_head_width(width))
    check.fail("the head width ", width, " must be one of 32, 64, 128, 256");
  if (capacity > kLargestCapacity)
    check.fail(name, " must have at most ", kLargestCapacity, " places, not ", capacity);
  return data;
}

Tensor attend(Tensor q, Tensor k, Tensor v, Tensor keys, Tensor values, Tensor position,
              Tensor cos, Tensor sin) {
  const Check check("decode_attention", q);
  check.two_dimensional("q", q);
  check.kind("q", q, kFloating);
  DecodeAttentionArguments a{};
  a.q = check_rows(check, "q", q, q);
  a.k = check_rows(check, "k", k, q);
  a.v = check_rows(check, "v", v, q);
  a.keys = check_cache(check, "keys", keys, keys, q);
  a.values = check_cache(check, "values", values, keys, q);
  a.position = check.scalar<int64_t>("position", position);
  a.cos = check.vector<float>("cos", cos, keys.size(3));
  a.sin = check.vector<float>("sin", sin, keys.size(3));
  Tensor y = torch::stable::new_empty(q, {q.size(0), q.size(1)});
  if (q.size(0) * q.size(1) == 0) return y;

  a.q_stride = q.stride(0), a.k_stride = k.stride(0), a.v_stride = v.stride(0);
  a.y = y.data_ptr();
  a.batch = static_cast<int>(keys.size(0));
  a.heads = static_cast<int>(keys.size(1));
  a.capacity = static_cast<int>(keys.size(2));
  a.width = static_cast<int>(keys.size(3));
  a.dtype = output_of(q.scalar_type());
  launch(check, decode_attention, a);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("decode_attention", TORCH_BOX(&attend));
}

}  // namespace questtrain
