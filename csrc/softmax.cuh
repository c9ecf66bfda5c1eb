// Softmaxes of a part of the keys, and how those of groups of lanes, of warps and of a cluster's
// blocks are joined. Scores are in units of log 2. fmaxf passes over NaN, powers do not.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <limits>

namespace questtrain {

constexpr int kMostSplits = 8;  // blocks of a portable cluster
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T, int loads, int columns>
__device__ __forceinline__ void widen_row(const uint4 (&row)[loads], float (&x)[columns]) {
#pragma unroll
  for (int i = 0; i < columns; ++i) {
    constexpr int kVector = columns / loads;
    x[i] = widen(reinterpret_cast<const T*>(&row[i / kVector])[i % kVector]);
  }
}

// What exponents are taken relative to: of nothing seen yet, whose weights are 0, not NaN.
__device__ __forceinline__ float base_of(float largest) {
  return largest == -kInfinity ? 0.f : largest;
}

// Of some keys: the largest score, and sums of weights and of weighted values relative to it.
template <int columns>
struct Softmax {
  float largest = -kInfinity, sum = 0.f;
  alignas(16) float values[columns] = {};

  __device__ __forceinline__ void scale(float now_largest) {
    const float factor = power_of_two(largest - base_of(now_largest));
    largest = now_largest;
    sum *= factor;
#pragma unroll
    for (int i = 0; i < columns; ++i) values[i] *= factor;
  }

  template <class T, int keys, int loads>
  __device__ __forceinline__ void add(const float (&scores)[keys],
                                      const uint4 (&rows)[keys][loads]) {
    float most = largest;
#pragma unroll
    for (int i = 0; i < keys; ++i) most = fmaxf(most, scores[i]);
    scale(most);
#pragma unroll
    for (int i = 0; i < keys; ++i) {
      const float weight = power_of_two(scores[i] - base_of(most));
      float x[columns];
      widen_row<T>(rows[i], x);
      sum += weight;
#pragma unroll
      for (int j = 0; j < columns; ++j) values[j] = fmaf(weight, x[j], values[j]);
    }
  }

  // With the warp's other groups.
  template <int group>
  __device__ __forceinline__ void join_groups() {
    float most = largest;
#pragma unroll
    for (int offset = group; offset < 32; offset *= 2)
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, offset));
    scale(most);
#pragma unroll
    for (int offset = group; offset < 32; offset *= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
#pragma unroll
      for (int i = 0; i < columns; ++i) values[i] += __shfl_xor_sync(kAllLanes, values[i], offset);
    }
  }
};

// Softmaxes of warps or of blocks, in shared memory.
template <int width, int most>
struct alignas(16) Parts {
  float values[most][width];
  float2 totals[most];  // the largest score and the sum

  // The first `count` joined, 4 columns a thread.
  __device__ __forceinline__ Softmax<4> join(int count) const {
    Softmax<4> all;
#pragma unroll
    for (int i = 0; i < most; ++i)
      if (i < count) all.largest = fmaxf(all.largest, totals[i].x);
#pragma unroll
    for (int i = 0; i < most; ++i) {
      if (i >= count) break;
      const float factor = power_of_two(totals[i].x - base_of(all.largest));
      const float4 x = *reinterpret_cast<const float4*>(&values[i][4 * threadIdx.x]);
      all.sum = fmaf(factor, totals[i].y, all.sum);
      all.values[0] = fmaf(factor, x.x, all.values[0]);
      all.values[1] = fmaf(factor, x.y, all.values[1]);
      all.values[2] = fmaf(factor, x.z, all.values[2]);
      all.values[3] = fmaf(factor, x.w, all.values[3]);
    }
    return all;
  }
};

// The blocks of a head. What they send lies in the first one's memory, whose barrier counts bytes:
// no fence, and nobody waits but the first. A block that is alone sends to itself, without a cluster.
template <int width>
struct Blocks {
  Parts<width, kMostSplits> parts;
  uint64_t barrier;

  __device__ __forceinline__ void keep(const Softmax<4>& part, int index = 0) {
    if (threadIdx.x < width / 4)
      *reinterpret_cast<float4*>(&parts.values[index][4 * threadIdx.x]) =
          make_float4(part.values[0], part.values[1], part.values[2], part.values[3]);
    if (threadIdx.x == 0) parts.totals[index] = make_float2(part.largest, part.sum);
    __syncthreads();
  }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static __device__ __forceinline__ int count() {
    int result;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(result));
    return result;
  }

  static __device__ __forceinline__ int rank() {
    int result;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(result));
    return result;
  }

  // By all threads of all blocks, before anything else: every block is to send one part.
  __device__ __forceinline__ void begin() {
    if (count() == 1) return;
    if (threadIdx.x == 0 && rank() == 0) {
      initialize();
      expect(count());
    }
    arrive();
  }

  // The same where the first block says later, by `arm`, how many parts there will be.
  __device__ __forceinline__ void begin_unarmed() {
    if (count() == 1) return;
    if (threadIdx.x == 0 && rank() == 0) initialize();
    arrive();
  }

  // What arrives earlier is counted, too: a phase ends when it was armed and has all its bytes.
  __device__ __forceinline__ void arm(int parts) {
    if (count() > 1 && threadIdx.x == 0 && rank() == 0) expect(parts);
  }

  // By all threads, once: the first block has begun.
  __device__ __forceinline__ void meet() {
    if (count() == 1) return;
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }

  // By all threads; those below width / 4 send. The block's part is that of its rank.
  __device__ __forceinline__ void send(const Softmax<4>& part) {
    if (count() == 1) return keep(part);
    meet();
    store(part, rank());
  }

  // The same after `meet`, of any part.
  __device__ __forceinline__ void put(const Softmax<4>& part, int index) {
    if (count() == 1) return keep(part, index);
    store(part, index);
  }

  // By threads of the first block.
  __device__ __forceinline__ void wait() {
    if (count() == 1) return;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n"
        "@!p bra again;\n"
        "}\n" ::"r"(uint32_t(__cvta_generic_to_shared(&barrier)))
        : "memory");
  }

 private:
  __device__ __forceinline__ uint32_t own_barrier() const {
    return uint32_t(__cvta_generic_to_shared(&barrier));
  }

  __device__ __forceinline__ void initialize() {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(own_barrier()) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }

  __device__ __forceinline__ void expect(int parts) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(own_barrier()),
                 "r"(parts * int(sizeof(float) * width + sizeof(float2)))
                 : "memory");
  }

  static __device__ __forceinline__ void arrive() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  }

  __device__ __forceinline__ void store(const Softmax<4>& part, int index) {
    if (threadIdx.x >= width / 4) return;
    const uint32_t to = of_first(&barrier);
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];"
        ::"r"(of_first(&parts.values[index][4 * threadIdx.x])), "f"(part.values[0]),
        "f"(part.values[1]), "f"(part.values[2]), "f"(part.values[3]), "r"(to)
        : "memory");
    if (threadIdx.x == 0)
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];"
          ::"r"(of_first(&parts.totals[index])), "f"(part.largest), "f"(part.sum), "r"(to)
          : "memory");
  }

  static __device__ __forceinline__ uint32_t of_first(const void* shared) {
    uint32_t result;
    asm("mapa.shared::cluster.u32 %0, %1, 0;"
        : "=r"(result)
        : "r"(uint32_t(__cvta_generic_to_shared(shared))));
    return result;
  }
#else
  static __device__ __forceinline__ int count() { return 1; }
  static __device__ __forceinline__ int rank() { return 0; }
  __device__ __forceinline__ void begin() {}
  __device__ __forceinline__ void begin_unarmed() {}
  __device__ __forceinline__ void arm(int) {}
  __device__ __forceinline__ void meet() {}
  __device__ __forceinline__ void send(const Softmax<4>& part) { keep(part); }
  __device__ __forceinline__ void put(const Softmax<4>& part, int index) { keep(part, index); }
  __device__ __forceinline__ void wait() {}
#endif
};

}  // namespace questtrain
