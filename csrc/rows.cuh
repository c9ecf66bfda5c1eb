// What the kernels over rows share: sums of a row, a thread's part of it, the sigmoid.
#pragma once

#include <cstdint>

#include "rotate.cuh"

namespace questtrain {

// ---- sums over a row's warps; each use has shared memory of its own, so one barrier is enough

__device__ __forceinline__ int32_t warp_sum(int32_t value) {
  return __reduce_add_sync(0xffffffffu, value);
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int stride = 16; stride; stride >>= 1)
    value += __shfl_xor_sync(0xffffffffu, value, stride);
  return value;
}

__device__ __forceinline__ float2 warp_sum(float2 value) {
  return make_float2(warp_sum(value.x), warp_sum(value.y));
}

__device__ __forceinline__ void add_to(int32_t& sum, int32_t value) { sum += value; }
__device__ __forceinline__ void add_to(float& sum, float value) { sum += value; }
__device__ __forceinline__ void add_to(float2& sum, float2 value) {
  sum.x += value.x;
  sum.y += value.y;
}
__device__ __forceinline__ void add_to(float4& sum, float4 value) {
  sum = make_float4(sum.x + value.x, sum.y + value.y, sum.z + value.z, sum.w + value.w);
}

// ---- a thread's part of a row

template <class Rotation>
struct Part {
  int position[kChunks];  // of its chunks in the row
  bool inside[kChunks];
  int lane, warp, warps, slot;  // slot: the block's rows

  __device__ __forceinline__ Part(int row_warps, int row_chunks)
      : lane(threadIdx.x & 31), warps(row_warps), slot((threadIdx.x >> 5) / row_warps) {
    warp = (threadIdx.x >> 5) - slot * warps;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      position[i] = Rotation::position(warp, lane, i);
      inside[i] = position[Rotation::anchor(i)] < row_chunks;
    }
  }
};

// Of the row whose sums start at `shared`.
template <class V>
__device__ __forceinline__ V row_sum(V value, V* shared, int warp, int warps) {
  value = warp_sum(value);
  if (warps == 1) return value;
  if ((threadIdx.x & 31) == 0) shared[warp] = value;
  __syncthreads();
  V total = shared[0];
#pragma unroll 1
  for (int i = 1; i < warps; ++i) add_to(total, shared[i]);
  return total;
}

// Bytes i of the quad's words → the i-th lane's word.
__device__ __forceinline__ uint32_t transpose_in_quad(uint32_t word, int lane) {
  const uint32_t odd = __shfl_xor_sync(0xffffffffu, word, 1);
  word = __byte_perm(word, odd, lane & 1 ? 0x3715 : 0x6240);
  const uint32_t far = __shfl_xor_sync(0xffffffffu, word, 2);
  return __byte_perm(word, far, lane & 2 ? 0x3276 : 0x5410);
}

// By the fast units; e^-x beyond fp32 is inf, and the sigmoid then 0.
__device__ __forceinline__ float sigmoid(float x) {
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.f + power));
  return inverse;
}

}  // namespace questtrain
