// AdamW in one pass over weight, gradient and both moments: 28 bytes an element, a launch for up to
// 64 tensors. The clipped gradient is not written back.
#include "adamw.h"
#include "launch.cuh"

namespace questtrain {
namespace {

constexpr int kThreads = 256;
constexpr int kTurns = 8;  // a thread's, of 4 elements
constexpr int64_t kBlockElements = int64_t{kThreads} * 4 * kTurns;

static_assert(sizeof(AdamWArguments) <= 4096, "the parameters of a kernel");

struct Update {
  float scale, keep, new_share, beta2, new_square, step_size, inverse_root, eps;

  __device__ __forceinline__ void operator()(float& weight, float grad, float& mean,
                                             float& square) const {
    grad *= scale;
    mean = fmaf(new_share, grad - mean, mean);
    square = fmaf(beta2, square, new_square * grad * grad);
    weight = weight * keep - step_size * mean / fmaf(sqrtf(square), inverse_root, eps);
  }
};

// One thread's doubles spare the others a power.
__device__ Update update_of(const AdamWArguments& a, const AdamWTensor& tensor) {
  const double step = *tensor.step;
  return {a.divisor ? 1.f / *a.divisor : 1.f,
          static_cast<float>(1 - a.lr * a.weight_decay),
          static_cast<float>(1 - a.beta1),
          static_cast<float>(a.beta2),
          static_cast<float>(1 - a.beta2),
          static_cast<float>(a.lr / (1 - pow(a.beta1, step))),
          static_cast<float>(1 / sqrt(1 - pow(a.beta2, step))),
          static_cast<float>(a.eps)};
}

__device__ __forceinline__ bool together(const AdamWTensor& t) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(t.weight) | reinterpret_cast<uintptr_t>(t.grad) |
                        reinterpret_cast<uintptr_t>(t.mean) | reinterpret_cast<uintptr_t>(t.square);
  return all % 16 == 0;
}

__device__ __forceinline__ void update_four(const AdamWTensor& t, int64_t first,
                                            const Update& update) {
  float4& weight = *reinterpret_cast<float4*>(t.weight + first);
  float4& mean = *reinterpret_cast<float4*>(t.mean + first);
  float4& square = *reinterpret_cast<float4*>(t.square + first);
  const float4 g = __ldcs(reinterpret_cast<const float4*>(t.grad + first));
  float4 w = weight, m = mean, s = square;
  update(w.x, g.x, m.x, s.x);
  update(w.y, g.y, m.y, s.y);
  update(w.z, g.z, m.z, s.z);
  update(w.w, g.w, m.w, s.w);
  weight = w;
  mean = m;
  square = s;
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const __grid_constant__ AdamWArguments a) {
  __shared__ Update shared_update;
  int of = 0;
#pragma unroll
  for (int half = kAdamWTensors / 2; half; half /= 2)
    if (of + half < a.count && a.tensors[of + half].first_block <= blockIdx.x) of += half;
  const AdamWTensor& t = a.tensors[of];
  allow_next();
  wait_for_previous();
  if (threadIdx.x == 0) shared_update = update_of(a, t);
  __syncthreads();
  const Update update = shared_update;
  const int64_t block = blockIdx.x - t.first_block;
  const bool vectors = together(t);
#pragma unroll 2
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t first = block * kBlockElements + 4 * (turn * kThreads + int64_t{threadIdx.x});
    if (vectors && first + 4 <= t.size)
      update_four(t, first, update);
    else
      for (int64_t i = first; i < first + 4 && i < t.size; ++i)
        update(t.weight[i], t.grad[i], t.mean[i], t.square[i]);
  }
}

}  // namespace

unsigned adamw_blocks(int64_t size) {
  return static_cast<unsigned>((size + kBlockElements - 1) / kBlockElements);
}

cudaError_t adamw(const AdamWArguments& a, unsigned blocks, cudaStream_t stream) {
  return launch_dependent(adamw_kernel, dim3(blocks), dim3(kThreads), 0, stream, a);
}

}  // namespace questtrain
