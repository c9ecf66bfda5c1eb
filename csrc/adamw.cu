// AdamW in one pass over weight, gradient and both moments: 28 bytes an element, a launch for up to
// 64 tensors. The clipped gradient is not written back.
#include <optional>
#include <utility>
#include <vector>

#include "launch.cuh"
#include "stable.h"

namespace questtrain {
namespace {

struct AdamWTensor {
  float* weight;
  const float* grad;
  float* mean;    // of gradients
  float* square;  // the mean of their squares
  const float* step;
  int64_t size;
  unsigned first_block;  // of the launch
};

constexpr int kAdamWTensors = 64;  // of a launch: its arguments fit into 4 KB

struct AdamWArguments {
  AdamWTensor tensors[kAdamWTensors];
  int count;
  const float* divisor;  // of the gradients, or null
  double lr, beta1, beta2, eps, weight_decay;
};

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

unsigned adamw_blocks(int64_t size) {
  return static_cast<unsigned>((size + kBlockElements - 1) / kBlockElements);
}

cudaError_t adamw(const AdamWArguments& a, unsigned blocks, cudaStream_t stream) {
  return launch_dependent(adamw_kernel, dim3(blocks), dim3(kThreads), 0, stream, a);
}

// ---- the op

using Tensors = std::vector<Tensor>;
constexpr Types kType = {ScalarType::Float};

void check_tensors(const Check& check, const Tensors& weights, const Tensors& grads,
                   const Tensors& means, const Tensors& squares, const Tensors& steps) {
  for (const Tensors* others : {&grads, &means, &squares, &steps})
    if (others->size() != weights.size())
      check.fail(weights.size(), " weights need as many of everything, not ", others->size());
  for (size_t i = 0; i < weights.size(); ++i) {
    check.dense("weights", weights[i], kType);
    for (const auto& [name, others] :
         {std::pair{"grads", &grads}, {"means", &means}, {"squares", &squares}}) {
      check.dense(name, (*others)[i], kType);
      check.shaped_like(name, (*others)[i], weights[i]);
    }
    check.scalar<float>("steps", steps[i]);
  }
}

void adamw_(Tensors weights, Tensors grads, Tensors means, Tensors squares, Tensors steps,
            std::optional<Tensor> divisor, double lr, double beta1, double beta2, double eps,
            double weight_decay) {
  const Tensor none;
  const Check check("adamw_", weights.empty() ? none : weights[0]);
  check_tensors(check, weights, grads, means, squares, steps);
  if (weights.empty()) return;
  AdamWArguments a{};
  if (divisor) a.divisor = check.scalar<float>("divisor", *divisor);
  a.lr = lr;
  a.beta1 = beta1;
  a.beta2 = beta2;
  a.eps = eps;
  a.weight_decay = weight_decay;
  unsigned blocks = 0;
  const auto run = [&] {
    if (a.count) launch_op(check, adamw, a, blocks);
    a.count = 0;
    blocks = 0;
  };
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i].numel() == 0) continue;
    a.tensors[a.count++] = {static_cast<float*>(weights[i].data_ptr()),
                            static_cast<const float*>(grads[i].data_ptr()),
                            static_cast<float*>(means[i].data_ptr()),
                            static_cast<float*>(squares[i].data_ptr()),
                            static_cast<const float*>(steps[i].data_ptr()),
                            weights[i].numel(),
                            blocks};
    blocks += adamw_blocks(weights[i].numel());
    if (a.count == kAdamWTensors) run();
  }
  run();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("adamw_", TORCH_BOX(&adamw_));
}

}  // namespace questtrain
