// Rotary positions between one product's Q, K, V and attention: Q and K rotated in place on the way
// there, rotated back and joined with V on the way back. 8 pairs a thread: elements i and i + width/2
// of a head.
#include "chunk.cuh"
#include "launch.cuh"
#include "rotary.h"

namespace questtrain {
namespace {

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
  const int half_chunks = a.width / 16, of_matrix = a.heads * half_chunks;
  constexpr int kMatrices = joins ? 3 : 2;
  const int64_t token = item / (kMatrices * of_matrix);
  const int rest = static_cast<int>(item - token * (kMatrices * of_matrix));
  const int matrix = rest / of_matrix, place = rest % of_matrix;
  const int head = place / half_chunks, i = place % half_chunks;
  const int in_row = head * 2 * half_chunks + i;  // in chunks
  Chunk<T>* target =
      static_cast<Chunk<T>*>(a.qkv) + (3 * token + matrix) * (2 * of_matrix) + in_row;
  const Chunk<T>* source = target;
  if constexpr (joins) {
    const void* part = matrix == 0 ? a.parts[0] : matrix == 1 ? a.parts[1] : a.parts[2];
    source = static_cast<const Chunk<T>*>(part) + token * (2 * of_matrix) + in_row;
  }
  Chunk<T> first = load_chunk(source), second = load_chunk(source + half_chunks);
  if (matrix < 2) {
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
  const int64_t items = a.tokens * (joins ? 3 : 2) * a.heads * (a.width / 16);
  const dim3 grid(static_cast<unsigned>((items + kThreads - 1) / kThreads)), block(kThreads);
  return joins ? launch_dependent(rotary_kernel<T, true>, grid, block, 0, stream, a, items)
               : launch_dependent(rotary_kernel<T, false>, grid, block, 0, stream, a, items);
}

}  // namespace

cudaError_t rotary(const RotaryArguments& a, Output type, cudaStream_t stream) {
  switch (type) {
    case Output::bfloat16: return launch<__nv_bfloat16>(a, stream);
    case Output::half: return launch<__half>(a, stream);
    default: return launch<float>(a, stream);
  }
}

}  // namespace questtrain
