// What the attention of a decoding step is made of: how a block's lanes share a head's rows, loads
// under way, the rotation, and a block's softmax of its part of the keys.
#pragma once

#include "launch.cuh"
#include "softmax.cuh"

namespace questtrain {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocksOfSM = 2;      // leaves the kernels before and after half an SM
constexpr float kLog2E = 1.44269504f;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// How a row of `width` elements lies in a group of lanes: lane l has the vectors l, l + group, …
template <class T, int width>
struct Layout {
  static constexpr int kVector = 16 / sizeof(T);  // elements of one load
  static constexpr int kVectors = width / kVector;
  static constexpr int kGroup = kVectors < 32 ? kVectors : 32;
  static constexpr int kLoads = kVectors / kGroup, kColumns = kLoads * kVector;
  static constexpr int kAhead = 8 / kLoads;  // keys of a lane under way
  static constexpr int kGroups = kThreads / kGroup;
  static constexpr int kStep = kGroups * kAhead;  // keys of a block under way

  static __device__ __forceinline__ int column(int load) {
    return (load * kGroup + int(threadIdx.x) % kGroup) * kVector;
  }
  // Of the rotated pairs' other elements.
  static __device__ __forceinline__ int partner(int load) {
    return (column(load) + width / 2) % width;
  }
};

// Zeros where `exists` is false. Volatile: issued here, not where it is used.
__device__ __forceinline__ uint4 load_or_zero(const void* source, bool exists) {
  uint4 x;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %5, 0;\n"
      "mov.b32 %0, 0;\n"
      "mov.b32 %1, 0;\n"
      "mov.b32 %2, 0;\n"
      "mov.b32 %3, 0;\n"
      "@p ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}\n"
      : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w)
      : "l"(source), "r"(int(exists)));
  return x;
}

__device__ __forceinline__ int64_t load_position(const int64_t* position) {
  return *static_cast<const volatile int64_t*>(position);
}

template <class L, class T>
__device__ __forceinline__ void load_row(uint4 (&row)[L::kLoads], const T* source, bool exists) {
#pragma unroll
  for (int i = 0; i < L::kLoads; ++i) row[i] = load_or_zero(source + L::column(i), exists);
}

template <class L, class T>
__device__ __forceinline__ void store_row(T* target, const uint4 (&row)[L::kLoads]) {
#pragma unroll
  for (int i = 0; i < L::kLoads; ++i)
    __stcg(reinterpret_cast<uint4*>(target + L::column(i)), row[i]);
}

template <class L>
__device__ __forceinline__ void load_angles(const float* source, float (&angles)[L::kColumns]) {
#pragma unroll
  for (int i = 0; i < L::kColumns; i += 4)
    *reinterpret_cast<float4*>(&angles[i]) = *reinterpret_cast<const float4*>(
        source + L::column(i / L::kVector) + i % L::kVector);
}

// A row that is rotated: with every element its partner.
template <class L, class T, int width>
struct Pairs {
  uint4 row[L::kLoads], partners[L::kLoads];

  __device__ __forceinline__ void load(const T* source, bool exists) {
    load_row<L>(row, source, exists);
#pragma unroll
    for (int i = 0; i < L::kLoads; ++i) partners[i] = load_or_zero(source + L::partner(i), exists);
  }

  // Two products and their sum, each rounded, then rounded to T: bit for bit the reference.
  __device__ __forceinline__ void rotate(const float (&cos)[L::kColumns],
                                         const float (&sin)[L::kColumns]) {
    float x[L::kColumns], y[L::kColumns];
    widen_row<T>(row, x);
    widen_row<T>(partners, y);
    T* out = reinterpret_cast<T*>(row);
#pragma unroll
    for (int i = 0; i < L::kColumns; ++i) {
      const float partner = L::column(i / L::kVector) < width / 2 ? -y[i] : y[i];
      out[i] = static_cast<T>(__fadd_rn(__fmul_rn(x[i], cos[i]), __fmul_rn(partner, sin[i])));
    }
  }
};

template <class L, class T>
__device__ __forceinline__ float score_of(const float (&q)[L::kColumns],
                                          const uint4 (&key)[L::kLoads]) {
  float x[L::kColumns], sum = 0.f;
  widen_row<T>(key, x);
#pragma unroll
  for (int i = 0; i < L::kColumns; ++i) sum = fmaf(q[i], x[i], sum);
#pragma unroll
  for (int offset = L::kGroup / 2; offset; offset /= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, offset);
  return sum;
}

// Some of the cached keys.
struct Range {
  int begin, end;
};

constexpr int kSmallestShare = 128;  // keys worth a softmax of their own

// How the cached keys are shared out, evenly: among as many blocks as there are, or, where a
// sequence has a `position` of its own, by that alone.
template <bool each>
struct Shares {
  int cached, count, size;

  __device__ __forceinline__ Shares(int64_t position, int capacity, int blocks)
      : cached(position >= 0 && position < capacity ? int(position) : 0), count(blocks) {
    if (each) count = max(1, min((cached + kSmallestShare - 1) / kSmallestShare, kMostSplits));
    size = (cached + count - 1) / count;
  }

  // Of a block's shares, which are `blocks` apart; of the block that has none one that is negative.
  __device__ __forceinline__ int last(int rank, int blocks) const {
    if (!each) return rank;
    return rank < count ? rank + (count - 1 - rank) / blocks * blocks : -1;
  }

  __device__ __forceinline__ Range range(int index) const {
    if (each && index < 0) return {0, 0};
    const int begin = min(index * size, cached);
    return {begin, min(begin + size, cached)};
  }
};

// Into L2, which all that was written passes through: nothing read early is kept.
template <int width, class T>
__device__ __forceinline__ void prefetch(const T* cache, Range range) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr int kMost = 32768;  // of all blocks that a GPU holds this fits into L2
  const int bytes = min(int((range.end - range.begin) * width * sizeof(T)), kMost);
  if (bytes > 0)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(cache +
                                                                    int64_t(range.begin) * width),
                 "r"(bytes));
#endif
}

// The keys that a lane has under way, and their values.
template <class L, class T, int width>
struct Window {
  uint4 keys[L::kAhead][L::kLoads], values[L::kAhead][L::kLoads];

  static __device__ __forceinline__ int key(int first, int i) {
    return first + i * L::kGroups + int(threadIdx.x) / L::kGroup;
  }

  static __device__ __forceinline__ void load(uint4 (&rows)[L::kAhead][L::kLoads], const T* cache,
                                              int first, int end) {
#pragma unroll
    for (int i = 0; i < L::kAhead; ++i) {
      const int at = key(first, i);
      load_row<L>(rows[i], cache + int64_t(at) * width, at < end);
    }
  }

  __device__ __forceinline__ void load(const T* all_keys, const T* all_values, Range range) {
    load(keys, all_keys, range.begin, range.end);
    load(values, all_values, range.begin, range.end);
  }

  // All of `range`, of which the first have been loaded; the first of `next` are when it returns.
  __device__ __forceinline__ void attend(Softmax<L::kColumns>& softmax,
                                         const float (&q)[L::kColumns], const T* all_keys,
                                         const T* all_values, Range range, Range next) {
    for (int first = range.begin; first < range.end; first += L::kStep) {
      float scores[L::kAhead];
#pragma unroll
      for (int i = 0; i < L::kAhead; ++i) {
        const float score = score_of<L, T>(q, keys[i]);
        scores[i] = key(first, i) < range.end ? score : -kInfinity;
      }
      const bool goes_on = first + L::kStep < range.end;
      const Range ahead = goes_on ? Range{first + L::kStep, range.end} : next;
      load(keys, all_keys, ahead.begin, ahead.end);
      softmax.template add<T>(scores, values);
      load(values, all_values, ahead.begin, ahead.end);
    }
  }
};

// The block's softmax in the first 4 columns a thread.
template <class L, int width>
__device__ __forceinline__ Softmax<4> join_block(Softmax<L::kColumns>& softmax) {
  __shared__ Parts<width, kWarps> warps;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  softmax.template join_groups<L::kGroup>();
  if (lane < L::kGroup)
#pragma unroll
    for (int i = 0; i < L::kColumns; i += 4)
      *reinterpret_cast<float4*>(&warps.values[warp][L::column(i / L::kVector) + i % L::kVector]) =
          *reinterpret_cast<const float4*>(&softmax.values[i]);
  if (lane == 0) warps.totals[warp] = make_float2(softmax.largest, softmax.sum);
  __syncthreads();
  Softmax<4> part;
  if (threadIdx.x < width / 4) part = warps.join(kWarps);
  return part;
}

}  // namespace questtrain
