// yᵀ = w·xᵀ tile by tile on Hopper: packed weights and codes of x come to shared memory by TMA, a
// weight's codes go through registers, where masks and shifts make bytes of them, to wgmma, which
// takes that operand from registers and x from shared memory.
//
// A block has `groups` of 4 warps, each with 64 weight rows, all with the same rows of x, and one warp
// that fetches. `split` blocks, a cluster, share a tile's width, and add up through each other's shared
// memory: integers, in any order.
//
// Of a quad, 128 codes of a row, the quad's lane t takes a quarter that lies together (`kLaneWords`
// words of one row, for two quads where a byte holds more than two codes). wgmma wants codes 4t … 4t+3
// and 16+4t … of each 32 from it: x is in the order that makes these the same (`store_for_tiles` in
// quantize.cu).
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>
#include <utility>

#include "cute/arch/mma_sm90_gmma.hpp"

#include "launch.cuh"
#include "packed_codes.cuh"
#include "packed_tiles.h"

namespace questtrain {

template <int rows>
struct Wgmma;
#define QUESTTRAIN_WGMMA(N)                                \
  template <>                                              \
  struct Wgmma<N> {                                        \
    using Op = cute::SM90::GMMA::MMA_64x##N##x32_S32S8S8_RS_TN; \
  };
QUESTTRAIN_WGMMA(16)
QUESTTRAIN_WGMMA(32)
QUESTTRAIN_WGMMA(64)
QUESTTRAIN_WGMMA(128)
#undef QUESTTRAIN_WGMMA

template <int rows, size_t... i>
__device__ __forceinline__ void wgmma(const uint32_t (&a)[4], uint64_t b, uint32_t (&sums)[rows / 2],
                                      std::index_sequence<i...>) {
  Wgmma<rows>::Op::fma(a[0], a[1], a[2], a[3], b, sums[i]...);
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- barriers and copies

__device__ __forceinline__ void init_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// If `does`: no branch, which would keep the compiler from running wgmma asynchronously.
__device__ __forceinline__ void arrive_if(bool does, uint32_t barrier) {
  asm volatile(
      "{\n.reg .pred does;\nsetp.ne.u32 does, %1, 0;\n"
      "@does mbarrier.arrive.shared.b64 _, [%0];\n}" ::"r"(barrier),
      "r"(static_cast<uint32_t>(does))
      : "memory");
}

__device__ __forceinline__ void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void wait_for(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@done bra end;\nbra again;\nend:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// How long L2 keeps what is copied: weights are read once, x by every block.
constexpr uint64_t kReadOnce = 0x12F0000000000000, kReadAgain = 0x14F0000000000000;

__device__ __forceinline__ void copy_box(const CUtensorMap& map, uint32_t barrier, uint32_t to,
                                         int column, int row, uint64_t keep) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(column), "r"(row), "l"(keep)
      : "memory");
}

__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

template <int barrier, int threads>
__device__ __forceinline__ void sync_threads() {
  asm volatile("bar.sync %0, %1;" ::"n"(barrier), "n"(threads) : "memory");
}

// ---- a tile

template <int bits_, int rows_, int groups_, int quads_, int blocks_>
struct Tile {
  static constexpr int bits = bits_, rows = rows_, groups = groups_, quads = quads_;
  static constexpr int kColumns = 64 * groups;                    // weight rows
  static constexpr int kBoxCodes = tile_block(bits);              // of a weight row, in one copy
  static constexpr int kBoxes = 128 * quads / kBoxCodes;          // copies of the weight a stage
  static constexpr int kRowBytes = kBoxCodes * bits / 8;
  static constexpr int kLaneWords = kRowBytes / 16;
  static constexpr int kByteCodes = 8 / bits;
  static constexpr int kQuadWords = bits;                         // of a lane
  static constexpr int kBoxBytes = kColumns * kRowBytes, kQuadBytes = rows * 128;
  // Stages of x, and of the weight as many more as the memory of one of so many blocks holds.
  static constexpr int kXBytes = quads * kQuadBytes, kWeightBytes = kBoxes * kBoxBytes;
  static constexpr int xs = rows <= 32 ? 6 : rows <= 64 ? 4 : 3;
  static constexpr int kMemory = (228 * 1024) / blocks_ - 1024;
  static constexpr int kAlignment = 1024;                         // of wgmma's swizzled operand
  static constexpr int kBarriers = 512;
  static constexpr int kRoom = kMemory - kAlignment - kBarriers - xs * kXBytes;
  static constexpr int weights = kRoom < 16 * kWeightBytes ? kRoom / kWeightBytes : 16;
  static constexpr int kPitch = kColumns + 4;                     // of the sums: no bank conflicts
  static constexpr int kSumBytes = rows * kPitch * 4;
  static constexpr int kStageBytes = xs * kXBytes + weights * kWeightBytes;
  static constexpr int kWorkBytes = kStageBytes > kSumBytes ? kStageBytes : kSumBytes;
  static constexpr int kSharedBytes = kAlignment + kWorkBytes + kBarriers;
  static constexpr int kWorkers = 128 * groups;
  static constexpr int kThreads = kWorkers + 32;
  static constexpr bool kIsValid =
      kSharedBytes <= kMemory && weights >= xs && (bits == 4 || quads == 2);
};

// A block's shared memory: stages of x, of the weight, and their barriers.
template <class T>
struct Memory {
  uint32_t start;

  __device__ __forceinline__ explicit Memory(const uint8_t* memory)
      : start((shared_address(memory) + T::kAlignment - 1) & ~(T::kAlignment - 1u)) {}
  __device__ __forceinline__ uint32_t x(int stage) const { return start + stage * T::kXBytes; }
  __device__ __forceinline__ uint32_t weight(int stage) const {
    return start + T::xs * T::kXBytes + stage * T::kWeightBytes;
  }
  // x and the weight are there, and both of a step are no longer needed.
  __device__ __forceinline__ uint32_t x_full(int stage) const {
    return start + T::kWorkBytes + 8 * stage;
  }
  __device__ __forceinline__ uint32_t left(int stage) const { return x_full(T::xs + stage); }
  __device__ __forceinline__ uint32_t weight_full(int stage) const {
    return x_full(2 * T::xs + stage);
  }
};

// Where a ring of `size` stages stands.
template <int size>
struct Place {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == size) stage = 0, parity ^= 1;
  }
};

// What a block of the grid does: `count` stages of the width from `first` on.
struct Work {
  int column, row, first, count;
};

template <class T>
__device__ __forceinline__ Work work_of(const PackedLinearArguments& a) {
  const int stages = (a.width + 128 * T::quads - 1) / (128 * T::quads);
  const int split = gridDim.y, part = blockIdx.y, first = stages * part / split;
  return {int(blockIdx.x) * T::kColumns, int(blockIdx.z) * T::rows, first,
          stages * (part + 1) / split - first};
}

// The weight as far ahead as there is room, before x is there: it is no kernel's result. Beyond the
// matrices' ends copies bring zeros, whose products are 0.
template <class T>
__device__ __forceinline__ void fetch(const CUtensorMap& x_map, const CUtensorMap& weight_map,
                                      const Work& work, const Memory<T>& memory) {
  Place<T::weights> next_weight;
  int ahead = 0;  // steps whose weight is on its way
  const auto fetch_weight = [&] {
    const uint32_t full = memory.weight_full(next_weight.stage);
    arrive_expecting(full, T::kWeightBytes);
#pragma unroll
    for (int j = 0; j < T::kBoxes; ++j)
      copy_box(weight_map, full, memory.weight(next_weight.stage) + j * T::kBoxBytes,
               ((work.first + ahead) * T::kBoxes + j) * T::kRowBytes, work.column, kReadOnce);
    next_weight.advance();
    ++ahead;
  };
  const auto fetch_x = [&](int step, int stage) {
    arrive_expecting(memory.x_full(stage), T::kXBytes);
#pragma unroll
    for (int j = 0; j < T::quads; ++j)
      copy_box(x_map, memory.x_full(stage), memory.x(stage) + j * T::kQuadBytes,
               ((work.first + step) * T::quads + j) * 128, work.row, kReadAgain);
  };
  while (ahead < min(work.count, T::weights)) fetch_weight();
  wait_for_previous();
  for (int i = 0; i < min(work.count, T::xs); ++i) fetch_x(i, i);
  Place<T::xs> next;
  for (int i = T::xs; i < work.count; ++i, next.advance()) {
    wait_for(memory.left(next.stage), next.parity);
    fetch_x(i, next.stage);
    if (ahead < work.count) fetch_weight();
  }
}

template <int words>
__device__ __forceinline__ void load_shared(uint32_t from, uint32_t (&to)[words]) {
  if constexpr (words == 4)
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
  else
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(from));
}

// A lane's codes of a quad, of two rows (of 8 in between), as wgmma's operand: 4 steps of 4 registers.
template <class T>
__device__ __forceinline__ void split_codes(const uint32_t (&words)[2][T::kLaneWords], int first,
                                            uint32_t (&codes)[4][4]) {
  constexpr uint32_t mask = (T::bits == 4 ? 15u : T::bits == 2 ? 3u : 1u) * 0x01010101u;
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      codes[i / 2][2 * (i % 2) + half] =
          words[half][first + i / T::kByteCodes] >> (T::bits * (i % T::kByteCodes)) & mask;
}

// The sums of level indices by codes of x, of a thread's part of the tile.
template <class T>
__device__ __forceinline__ void multiply(const Work& work, const Memory<T>& memory,
                                         uint32_t (&sums)[T::rows / 2]) {
  // K-major rows of 128 bytes, swizzled: 8 of them are 1,024 bytes.
  constexpr uint64_t kDescriptor = (1ull << 62) | (64ull << 32) | (1ull << 16);
  constexpr int kBoxQuads = T::quads / T::kBoxes;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const uint32_t of_lane = (16 * warp + lane / 4) * T::kRowBytes + lane % 4 * (4 * T::kLaneWords);
  uint32_t codes[T::quads][4][4];
  Place<T::xs> x;
  Place<T::weights> weight;
  for (int i = 0; i < work.count; ++i) {
    wait_for(memory.weight_full(weight.stage), weight.parity);
    uint32_t words[2][T::kLaneWords];
#pragma unroll
    for (int quad = 0; quad < T::quads; ++quad) {
      if (quad % kBoxQuads == 0)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          load_shared(memory.weight(weight.stage) + quad / kBoxQuads * T::kBoxBytes + of_lane +
                          8 * half * T::kRowBytes,
                      words[half]);
      split_codes<T>(words, quad % kBoxQuads * T::kQuadWords, codes[quad]);
      if (quad == 0) wait_for(memory.x_full(x.stage), x.parity);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int step = 0; step < 4; ++step)
        wgmma<T::rows>(codes[quad][step],
                       kDescriptor | (memory.x(x.stage) + quad * T::kQuadBytes + 32 * step) >> 4,
                       sums, std::make_index_sequence<T::rows / 2>());
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      // While a quad's products run the next one's codes are split, in registers of their own.
      asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(T::quads - 1) : "memory");
      const int left = T::quads == 1 ? x.stage : x.stage ? x.stage - 1 : T::xs - 1;
      if (quad == 0)
        arrive_if(threadIdx.x % 128 == 0 && (T::quads == 1 || i > 0), memory.left(left));
    }
    x.advance();
    weight.advance();
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// A thread's sums to shared memory, which the stages have left: [rows, kPitch].
template <class T>
__device__ __forceinline__ void store_sums(const uint32_t (&sums)[T::rows / 2], uint32_t to) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int i = 0; i < T::rows / 2; ++i) {
    const int row = i / 4 * 8 + 2 * (lane % 4) + i % 2;
    const int column = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + 4 * (row * T::kPitch + column)),
                 "r"(sums[i])
                 : "memory");
  }
}

// 4 sums of the cluster's block `rank`, added to `total`.
__device__ __forceinline__ void add_part(uint32_t from, int rank, int32_t* total) {
  int32_t sums[4];
  asm volatile(
      "{\n.reg .u32 there;\nmapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.s32 {%0, %1, %2, %3}, [there];\n}"
      : "=r"(sums[0]), "=r"(sums[1]), "=r"(sums[2]), "=r"(sums[3])
      : "r"(from), "r"(rank));
#pragma unroll
  for (int i = 0; i < 4; ++i) total[i] += sums[i];
}

template <class Out>
__device__ __forceinline__ Out rounded(float value) {
  if constexpr (std::is_same_v<Out, __nv_bfloat16>)
    return __float2bfloat16_rn(value);
  else
    return __float2half_rn(value);
}

// 8 results of one row, 16 bytes.
template <class Out>
__device__ __forceinline__ void store_results(const PackedLinearArguments& a, int row, int column,
                                              const int32_t (&total)[8]) {
  const float x_scale = a.x_scales[row];
  const int32_t correction = (a.levels - 1) * a.x_sums[row];
  float scales[8];
  *reinterpret_cast<float4*>(scales) = *reinterpret_cast<const float4*>(a.weight_scales + column);
  *reinterpret_cast<float4*>(scales + 4) =
      *reinterpret_cast<const float4*>(a.weight_scales + column + 4);
  alignas(16) Out results[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    results[i] =
        rounded<Out>(x_scale * (scales[i] * static_cast<float>(2 * total[i] - correction)));
  *reinterpret_cast<uint4*>(static_cast<Out*>(a.y) + static_cast<size_t>(row) * a.columns +
                            column) = *reinterpret_cast<const uint4*>(results);
}

// This block's rows of the tile, summed over the cluster.
template <class T>
__device__ __forceinline__ void finish(const PackedLinearArguments& a, const Work& work,
                                       uint32_t sums) {
  const int split = gridDim.y, part = blockIdx.y, rows = min(T::rows, a.rows - work.row);
  const int first = rows * part / split, count = rows * (part + 1) / split - first;
  constexpr int kEights = T::kColumns / 8;
  for (int i = threadIdx.x; i < count * kEights; i += T::kWorkers) {
    const int row = first + i / kEights, column = i % kEights * 8;
    if (work.column + column >= a.columns) continue;
    int32_t total[8] = {};
    for (int other = 0; other < split; ++other) {
      const uint32_t from = sums + 4 * (row * T::kPitch + column);
      add_part(from, other, total);
      add_part(from + 16, other, total + 4);
    }
    if (a.output == Output::half)
      store_results<__half>(a, work.row + row, work.column + column, total);
    else
      store_results<__nv_bfloat16>(a, work.row + row, work.column + column, total);
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    packed_tile_kernel(const __grid_constant__ CUtensorMap x_map,
                       const __grid_constant__ CUtensorMap weight_map, PackedLinearArguments a) {
  extern __shared__ uint8_t start[];
  const Memory<T> memory(start);
  const Work work = work_of<T>(a);
  allow_next();
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::xs; ++i) {
      init_barrier(memory.x_full(i), 1);
      init_barrier(memory.left(i), T::groups);
    }
    for (int i = 0; i < T::weights; ++i) init_barrier(memory.weight_full(i), 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x >= T::kWorkers) {
    if (threadIdx.x == T::kWorkers) fetch<T>(x_map, weight_map, work, memory);
    __syncwarp();
    sync_cluster();
  } else {
    uint32_t sums[T::rows / 2] = {};
    wait_for_previous();
    multiply<T>(work, memory, sums);
    sync_threads<1, T::kWorkers>();
    store_sums<T>(sums, memory.start);
    sync_cluster();
    finish<T>(a, work, memory.start);
  }
  sync_cluster();  // its memory is read by others until here
}

}  // namespace questtrain
