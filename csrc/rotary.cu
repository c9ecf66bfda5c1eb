// Rotary positions between one product's Q, K, V and attention: Q and K rotated in place on the way
// there, rotated back and joined with V on the way back. 8 pairs a thread: elements i and i + width/2
// of a head.
#include <algorithm>
#include <utility>

#include "chunk.cuh"
#include "launch.cuh"
#include "stable.h"

namespace questtrain {
namespace {

struct RotaryArguments {
  void* qkv;          // [tokens, heads of Q, K and V, width]
  const void* parts[3];  // Q, K, V: [tokens, heads, width]; null: Q and K are turned in place
  const float* cos;   // [length, width], halves repeated
  const float* sin;
  int64_t tokens;
  int length;  // a token's position is its number modulo this
  int heads, kv_heads, width;
};

constexpr int kThreads = 256;

// first·cos - second·sin and second·cos + first·sin; the other way round with -sin.
template <class T>
__device__ __forceinline__ void turn(Chunk<T>& first, Chunk<T>& second, const Chunk<float>& cos,
                                     const Chunk<float>& sin, float direction) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float a = static_cast<float>(first.element[j]), b = static_cast<float>(second.element[j]);
    const float s = direction * sin.element[j];
    first.element[j] = narrow<T>(fmaf(a, cos.element[j], -b * s));
    second.element[j] = narrow<T>(fmaf(b, cos.element[j], a * s));
  }
}

template <class T, bool joins>
__global__ void rotary_kernel(RotaryArguments a, int64_t items) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  allow_next();
  wait_for_previous();
  if (item >= items) return;
  const int half_chunks = a.width / 16, turned = a.heads + a.kv_heads, all = turned + a.kv_heads;
  const int of_token = (joins ? all : turned) * half_chunks;
  const int64_t token = item / of_token;
  const int rest = static_cast<int>(item - token * of_token);
  const int head = rest / half_chunks, i = rest % half_chunks;  // of Q's, then K's, then V's
  const int of_head = 2 * half_chunks;                          // in chunks
  Chunk<T>* target = static_cast<Chunk<T>*>(a.qkv) + (token * all + head) * of_head + i;
  const Chunk<T>* source = target;
  if constexpr (joins) {
    const int matrix = (head >= a.heads) + (head >= turned);
    const void* part = matrix == 0 ? a.parts[0] : matrix == 1 ? a.parts[1] : a.parts[2];
    const int heads = matrix == 0 ? a.heads : a.kv_heads;
    const int own = head - (matrix == 0 ? 0 : matrix == 1 ? a.heads : turned);
    source = static_cast<const Chunk<T>*>(part) + (token * heads + own) * of_head + i;
  }
  Chunk<T> first = load_chunk(source), second = load_chunk(source + half_chunks);
  if (head < turned) {
    const int64_t angle = token % a.length * (2 * half_chunks) + i;
    turn(first, second, load_again(reinterpret_cast<const Chunk<float>*>(a.cos) + angle),
         load_again(reinterpret_cast<const Chunk<float>*>(a.sin) + angle), joins ? -1.f : 1.f);
  }
  store_chunk(target, first);
  store_chunk(target + half_chunks, second);
}

template <class T>
cudaError_t launch(const RotaryArguments& a, cudaStream_t stream) {
  const bool joins = a.parts[0] != nullptr;
  const int64_t items = a.tokens * (a.heads + (joins ? 2 : 1) * a.kv_heads) * (a.width / 16);
  const dim3 grid(static_cast<unsigned>((items + kThreads - 1) / kThreads)), block(kThreads);
  return joins ? launch_dependent(rotary_kernel<T, true>, grid, block, 0, stream, a, items)
               : launch_dependent(rotary_kernel<T, false>, grid, block, 0, stream, a, items);
}

// ---- the op

// For x [batch, tokens, …] of so many heads, but for the tensors themselves.
RotaryArguments arguments_of(const Check& check, const Tensor& x, int64_t heads, int64_t kv_heads,
                             int64_t width, const Tensor& cos, const Tensor& sin) {
  const int64_t length = x.size(1);
  check.multiple("the head width", width, 16);
  RotaryArguments arguments{};
  arguments.cos = check.matrix<float>("cos", cos, length, width);
  arguments.sin = check.matrix<float>("sin", sin, length, width);
  arguments.tokens = x.size(0) * length;
  arguments.length = static_cast<int>(length);
  arguments.heads = static_cast<int>(heads);
  arguments.kv_heads = static_cast<int>(kv_heads);
  arguments.width = static_cast<int>(width);
  return arguments;
}

void run(const Check& check, const RotaryArguments& arguments) {
  const auto kernel = by_element(check.like.scalar_type(), launch<__nv_bfloat16>, launch<__half>,
                                 launch<float>);
  if (arguments.tokens) launch_op(check, kernel, arguments);
}

void rotary_(Tensor qkv, Tensor cos, Tensor sin, int64_t heads, int64_t kv_heads) {
  const Check check("rotary_", qkv);
  const int64_t all = heads + 2 * kv_heads;
  if (qkv.dim() != 3 || heads < 1 || kv_heads < 1 || qkv.size(2) % all)
    check.fail("qkv must be [batch, tokens, (", heads, " + 2·", kv_heads, ")·width], not ",
               shape_of(qkv));
  void* data = check.aligned("qkv", qkv, kFloating);
  RotaryArguments arguments =
      arguments_of(check, qkv, heads, kv_heads, qkv.size(2) / all, cos, sin);
  arguments.qkv = data;
  run(check, arguments);
}

Tensor join_rotary(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin) {
  const Check check("join_rotary", q);
  if (q.dim() != 4)
    check.fail("q must be [batch, tokens, heads, width], not ", shape_of(q));
  const void* parts[3] = {check.aligned("q", q, kFloating)};
  int i = 0;
  for (const auto& [name, part] : {std::pair{"k", &k}, {"v", &v}}) {
    if (part->dim() != 4 || part->size(0) != q.size(0) || part->size(1) != q.size(1) ||
        part->size(2) != k.size(2) || part->size(3) != q.size(3))
      check.fail(name, " must be [", q.size(0), ", ", q.size(1), ", heads, ", q.size(3),
                 "] with heads the same for k and v, not ", shape_of(*part));
    parts[++i] = check.aligned(name, *part, {q.scalar_type()});
  }
  const int64_t heads = q.size(2), kv_heads = k.size(2), width = q.size(3);
  RotaryArguments arguments = arguments_of(check, q, heads, kv_heads, width, cos, sin);
  Tensor qkv =
      torch::stable::new_empty(q, {q.size(0), q.size(1), (heads + 2 * kv_heads) * width});
  arguments.qkv = qkv.data_ptr();
  std::copy(parts, parts + 3, arguments.parts);
  run(check, arguments);
  return qkv;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("rotary_", TORCH_BOX(&rotary_));
  m.impl("join_rotary", TORCH_BOX(&join_rotary));
}

}  // namespace questtrain
