// Cross-entropy of a row of logits, and in their place its gradient, softmax − onehot.
//
// One block a row. On its way into shared memory every thread sums the exponentials of what it
// fetched itself, relative to the largest so far; the block's sum turns the copy into the gradient.
// So the row is read and written once; where it is wider than shared memory it is read twice.
// Rows may start anywhere: the elements before the first and after the last whole vector, the
// edges, are taken one by one.
#include <limits>

#include "launch.cuh"
#include "softmax.cuh"
#include "stable.h"

namespace questtrain {
namespace {

struct CrossEntropyArguments {
  void* logits;            // [rows, width], in 16-byte alignment; rows need none
  const int64_t* targets;  // [rows]
  float* losses;           // [rows]
  int64_t rows;
  int width;
  int64_t ignored;         // target of rows without loss and gradient
};

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kBlocksOfSM = 3;  // in which rows of 76 KB or less fit side by side
constexpr int kAhead = 4;  // vectors of a thread in one request; two are under way
constexpr int kStep = kThreads * kAhead;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

__device__ __forceinline__ void copy_async(uint4* shared, const uint4* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   uint32_t(__cvta_generic_to_shared(shared))),
               "l"(source)
               : "memory");
}

template <class T>
struct Row {
  static constexpr int kVector = 16 / sizeof(T);
  T* all;
  uint4* whole;
  int vectors;
  int head, edges;  // elements before the vectors; these and those behind

  __device__ __forceinline__ Row(T* all, int width) : all(all) {
    head = min(width, int(-reinterpret_cast<intptr_t>(all) & 15) / int(sizeof(T)));
    whole = reinterpret_cast<uint4*>(all + head);
    vectors = (width - head) / kVector;
    edges = width - vectors * kVector;
  }

  __device__ __forceinline__ int edge(int i) const { return i < head ? i : i + vectors * kVector; }

  __device__ __forceinline__ void request(uint4* copy, int first) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = first + i * kThreads;
      if (at < vectors) copy_async(copy + at, whole + at);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  // Until of this thread's requests only the last is under way.
  static __device__ __forceinline__ void wait_for_all_but_last() {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  }
};

__device__ __forceinline__ float exponential(float x) { return power_of_two(x * kLog2E); }

// The sum of exp(logit − largest).
struct Exponentials {
  float largest = -kInfinity, sum = 0.f;

  template <int count>
  __device__ __forceinline__ void add(const float (&logits)[count]) {
    const float before = largest;
#pragma unroll
    for (int i = 0; i < count; ++i) largest = fmaxf(largest, logits[i]);
    const float base = base_of(largest);
    sum *= exponential(before - base);
#pragma unroll
    for (int i = 0; i < count; ++i) sum += exponential(logits[i] - base);
  }

  __device__ __forceinline__ void join(float other_largest, float other_sum) {
    const float before = largest;
    largest = fmaxf(before, other_largest);
    const float base = base_of(largest);
    sum = sum * exponential(before - base) + other_sum * exponential(other_largest - base);
  }

  __device__ __forceinline__ void join_lanes() {
#pragma unroll
    for (int offset = 16; offset; offset /= 2)
      join(__shfl_xor_sync(kAllLanes, largest, offset), __shfl_xor_sync(kAllLanes, sum, offset));
  }

  // With the other threads of the block, in an order that is the same for all.
  __device__ __forceinline__ void join_block() {
    __shared__ float2 warps[kWarps];
    join_lanes();
    const int lane = int(threadIdx.x) % 32;
    if (lane == 0) warps[threadIdx.x / 32] = make_float2(largest, sum);
    __syncthreads();
    const float2 warp = lane < kWarps ? warps[lane] : make_float2(-kInfinity, 0.f);
    largest = warp.x, sum = warp.y;
    join_lanes();
  }
};

// Of this thread's part of the row; `copy`, where there is one, then holds its vectors.
template <bool copies, class T>
__device__ __forceinline__ Exponentials exponentials_of(const Row<T>& row, uint4* copy) {
  Exponentials result;
  if constexpr (copies) row.request(copy, threadIdx.x);
  for (int first = threadIdx.x; first < row.vectors; first += kStep) {
    if constexpr (copies) {
      row.request(copy, first + kStep);
      row.wait_for_all_but_last();
    }
    const uint4* source = copies ? copy : row.whole;
    uint4 vectors[kAhead][1];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (first + i * kThreads < row.vectors) vectors[i][0] = source[first + i * kThreads];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kThreads >= row.vectors) break;
      float logits[Row<T>::kVector];
      widen_row<T>(vectors[i], logits);
      result.add(logits);
    }
  }
  if (threadIdx.x < row.edges) {
    const float logits[1] = {widen(row.all[row.edge(threadIdx.x)])};
    result.add(logits);
  }
  return result;
}

// softmax − onehot of one row, from its sum of exponentials.
struct Gradient {
  float base, log_sum;  // the latter of base 2
  int target;

  __device__ __forceinline__ float softmax(float logit) const {
    return power_of_two(fmaf(logit - base, kLog2E, -log_sum));
  }

  // From the vectors at `source`, which lie where the row's do or in the copy, and the row's edges.
  template <class T>
  __device__ __forceinline__ void write(const Row<T>& row, const uint4* source) const {
    constexpr int kVector = Row<T>::kVector;
#pragma unroll 2
    for (int at = threadIdx.x; at < row.vectors; at += kThreads) {
      const uint4 vector[1] = {source[at]};
      float values[kVector];
      widen_row<T>(vector, values);
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[i] = softmax(values[i]);
      const int place = target - row.head - at * kVector;
      if (place >= 0 && place < kVector)
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] -= i == place ? 1.f : 0.f;
      alignas(16) T out[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) out[i] = static_cast<T>(values[i]);
      row.whole[at] = *reinterpret_cast<const uint4*>(out);
    }
    if (threadIdx.x < row.edges) {
      const int at = row.edge(threadIdx.x);
      row.all[at] = static_cast<T>(softmax(widen(row.all[at])) - (at == target ? 1.f : 0.f));
    }
  }
};

template <class T>
__device__ __forceinline__ void write_zeros(const Row<T>& row) {
  for (int at = threadIdx.x; at < row.vectors; at += kThreads) row.whole[at] = uint4{};
  if (threadIdx.x < row.edges) row.all[row.edge(threadIdx.x)] = static_cast<T>(0.f);
}

template <class T, bool copies>
__global__ void __launch_bounds__(kThreads, kBlocksOfSM)
    cross_entropy_kernel(CrossEntropyArguments a) {
  extern __shared__ uint4 copy[];
  allow_next();
  wait_for_previous();
  const int64_t target = a.targets[blockIdx.x];
  const Row<T> row(static_cast<T*>(a.logits) + int64_t(blockIdx.x) * a.width, a.width);
  if (target == a.ignored) {
    write_zeros(row);
    if (threadIdx.x == 0) a.losses[blockIdx.x] = 0.f;
    return;
  }
  const bool exists = target >= 0 && target < a.width;
  const float at_target = exists ? widen(row.all[target]) : kNaN;
  Exponentials all = exponentials_of<copies>(row, copy);
  all.join_block();
  const float base = base_of(all.largest), log_sum = exists ? log2f(all.sum) : kNaN;
  if (threadIdx.x == 0) a.losses[blockIdx.x] = fmaf(log_sum, kLn2, base - at_target);
  Gradient{base, log_sum, int(target)}.write(row, copies ? copy : row.whole);
}

template <class T>
cudaError_t launch(const CrossEntropyArguments& a, cudaStream_t stream) {
  const int bytes_left = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) -
                         int(sizeof(float2)) * kWarps;
  const int64_t bytes = int64_t(a.width) * sizeof(T) / 16 * 16;
  const dim3 grid(static_cast<unsigned>(a.rows)), block(kThreads);
  if (bytes > bytes_left)
    return launch_dependent(cross_entropy_kernel<T, false>, grid, block, 0, stream, a);
  const auto kernel = cross_entropy_kernel<T, true>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  return launch_dependent(kernel, grid, block, static_cast<size_t>(bytes), stream, a);
}

// ---- the op

Tensor cross_entropy_(Tensor logits, Tensor targets, int64_t ignored) {
  const Check check("cross_entropy_", logits);
  CrossEntropyArguments a{};
  a.logits = check.matrix("logits", logits, kAny, kAny, kFloating);
  if (!logits.size(1)) check.fail("logits must have columns, not shape ", shape_of(logits));
  constexpr int64_t most = std::numeric_limits<int>::max();
  if (logits.size(0) > most || logits.size(1) > most)
    check.fail("logits must have at most ", most, " rows and columns, not ", shape_of(logits));
  // They may start anywhere, for they are read one by one: a chunk's are a slice.
  check.one_dimensional("targets", targets, logits.size(0));
  a.targets = static_cast<const int64_t*>(check.dense("targets", targets, {ScalarType::Long}));
  Tensor losses = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Float);
  if (logits.size(0) == 0) return losses;

  a.losses = static_cast<float*>(losses.data_ptr());
  a.rows = logits.size(0);
  a.width = static_cast<int>(logits.size(1));
  a.ignored = ignored;
  const ScalarType type = logits.scalar_type();
  launch_op(check, by_element(type, launch<__nv_bfloat16>, launch<__half>, launch<float>), a);
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("cross_entropy_", TORCH_BOX(&cross_entropy_));
}

}  // namespace questtrain
