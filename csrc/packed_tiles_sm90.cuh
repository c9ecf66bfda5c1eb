// yᵀ = w·xᵀ tile by tile on Hopper: packed weights and codes of x come to shared memory by TMA, a
// weight's codes go through registers, where masks and shifts make bytes of them, to wgmma, which
// takes that operand from registers and x from shared memory.
//
// A block has `groups` of 4 warps, each with `slabs` of 64 weight rows, all with the same rows of x,
// and one warp that fetches. `split` blocks of a cluster share a tile's width, and add up through each
// other's shared memory: integers, in any order. A cluster's `neighbours`, tiles side by side, have the
// same rows of x: each fetches its share of them for all.
//
// Of a quad, 128 codes of a row, the quad's lane t takes a quarter that lies together (`kLaneWords`
// words of one row, for two quads where a byte holds more than two codes). wgmma wants codes 4t … 4t+3
// and 16+4t … of each 32 from it: x is in the order that makes these the same (`tile_place`).
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
QUESTTRAIN_WGMMA(256)
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

// At the barrier in the same place of the cluster's block `rank`, if `does`: no branch, which would keep
// the compiler from running wgmma asynchronously.
__device__ __forceinline__ void arrive_at(uint32_t barrier, int rank, bool does) {
  asm volatile(
      "{\n.reg .pred does;\n.reg .u32 there;\nsetp.ne.u32 does, %2, 0;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "@does mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
      "r"(rank), "r"(static_cast<uint32_t>(does))
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

// To the same place of all blocks in the `mask` of cluster ranks, with news at each one's barrier.
__device__ __forceinline__ void copy_box_to_all(const CUtensorMap& map, uint32_t barrier, uint32_t to,
                                                int column, int row, uint16_t mask,
                                                uint64_t keep) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(column), "r"(row), "h"(mask), "l"(keep)
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

template <int bits_, int rows_, int groups_, int slabs_, int quads_, int stages_, int neighbours_>
struct Tile {
  static constexpr int bits = bits_, rows = rows_, groups = groups_, slabs = slabs_;
  static constexpr int quads = quads_, stages = stages_, neighbours = neighbours_;
  static constexpr int kColumns = 64 * groups * slabs;            // weight rows
  static constexpr int kBoxCodes = tile_block(bits);              // of a weight row, in one copy
  static constexpr int kBoxes = 128 * quads / kBoxCodes;          // copies of the weight a stage
  static constexpr int kRowBytes = kBoxCodes * bits / 8;
  static constexpr int kLaneWords = kRowBytes / 16;
  static constexpr int kByteCodes = 8 / bits;
  static constexpr int kQuadWords = bits;                         // of a lane
  static constexpr int kBoxBytes = kColumns * kRowBytes, kXBytes = rows * 128;
  static constexpr int kStageBytes = quads * kXBytes + kBoxes * kBoxBytes;
  static constexpr int kPitch = kColumns + 4;                     // of the sums: no bank conflicts
  static constexpr int kSumBytes = rows * kPitch * 4;
  static constexpr int kWorkBytes = stages * kStageBytes > kSumBytes ? stages * kStageBytes : kSumBytes;
  static constexpr uint32_t kAlignment = 1024;                         // of wgmma's swizzled operand
  static constexpr int kSharedBytes = kAlignment + kWorkBytes + 16 * stages;
  static constexpr int kWorkers = 128 * groups;
  // Wide tiles take the registers of the warps that only fetch.
  static constexpr bool kTakesRegisters = rows * slabs > 128;
  static constexpr int kThreads = kWorkers + (kTakesRegisters ? 128 : 32);
  static constexpr bool kIsValid =
      kSharedBytes <= 227 * 1024 && (bits == 4 || quads == 2) && kColumns <= 256;
};

// What a block of the grid does: `count` stages of the width from `first` on.
struct Work {
  int column, row, first, count;
};

// The rank in the cluster of its block in column `x` and row `y`.
template <class T>
__device__ __forceinline__ int cluster_rank(int x, int y) {
  return x + T::neighbours * y;
}

template <class T>
__device__ __forceinline__ Work work_of(const PackedLinearArguments& a) {
  const int stages = (a.width + 128 * T::quads - 1) / (128 * T::quads);
  const int split = gridDim.y, part = blockIdx.y, first = stages * part / split;
  return {int(blockIdx.x) * T::kColumns, int(blockIdx.z) * T::rows, first,
          stages * (part + 1) / split - first};
}

// Beyond the matrices' ends copies bring zeros, whose products are 0.
template <class T>
__device__ __forceinline__ void fetch(const CUtensorMap& x_map, const CUtensorMap& weight_map,
                                      const Work& work, uint32_t stages, uint32_t full,
                                      uint32_t empty) {
  const auto weight = [&](int i, int stage) {
    const uint32_t to = stages + stage * T::kStageBytes + T::quads * T::kXBytes;
    arrive_expecting(full + 8 * stage, T::kStageBytes);
#pragma unroll
    for (int j = 0; j < T::kBoxes; ++j)
      copy_box(weight_map, full + 8 * stage, to + j * T::kBoxBytes,
               ((work.first + i) * T::kBoxes + j) * T::kRowBytes, work.column, kReadOnce);
  };
  const int first_row = blockIdx.x % T::neighbours * (T::rows / T::neighbours);
  const auto all = static_cast<uint16_t>((1 << T::neighbours) - 1 << cluster_rank<T>(0, blockIdx.y));
  const auto x = [&](int i, int stage) {
#pragma unroll
    for (int j = 0; j < T::quads; ++j) {
      const uint32_t to = stages + stage * T::kStageBytes + j * T::kXBytes + first_row * 128;
      const int column = ((work.first + i) * T::quads + j) * 128, row = work.row + first_row;
      if constexpr (T::neighbours > 1)
        copy_box_to_all(x_map, full + 8 * stage, to, column, row, all, kReadAgain);
      else
        copy_box(x_map, full + 8 * stage, to, column, row, kReadAgain);
    }
  };
  const int ahead = min(work.count, T::stages);
  for (int i = 0; i < ahead; ++i) weight(i, i);
  wait_for_previous();  // x is its result, the weight is not
  for (int i = 0; i < ahead; ++i) x(i, i);
  uint32_t parity = 0;
  for (int i = T::stages, stage = 0; i < work.count; ++i) {
    wait_for(empty + 8 * stage, parity);
    weight(i, stage);
    x(i, stage);
    if (++stage == T::stages) stage = 0, parity ^= 1;
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
__device__ __forceinline__ void multiply(const Work& work, uint32_t stages, uint32_t full,
                                         uint32_t empty,
                                         uint32_t (&sums)[T::slabs][T::rows / 2]) {
  // K-major rows of 128 bytes, swizzled: 8 of them are 1,024 bytes.
  constexpr uint64_t kDescriptor = (1ull << 62) | (64ull << 32) | (1ull << 16);
  constexpr int kBoxQuads = T::quads / T::kBoxes;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int row = 64 * T::slabs * (warp / 4) + 16 * (warp % 4) + lane / 4;
  const uint32_t of_lane =
      stages + T::quads * T::kXBytes + row * T::kRowBytes + lane % 4 * (4 * T::kLaneWords);
  // A stage is left for all neighbours, by one thread of each 4 warps for each.
  const bool arrives = threadIdx.x % 128 < T::neighbours;
  const int owner = cluster_rank<T>(threadIdx.x % T::neighbours, blockIdx.y);
  uint32_t parity = 0, codes[T::quads][T::slabs][4][4];
  for (int i = 0, stage = 0; i < work.count; ++i) {
    const uint32_t start = stage * T::kStageBytes;
    wait_for(full + 8 * stage, parity);
    uint32_t words[T::slabs][2][T::kLaneWords];
#pragma unroll
    for (int quad = 0; quad < T::quads; ++quad) {
#pragma unroll
      for (int s = 0; s < T::slabs; ++s) {
        if (quad % kBoxQuads == 0)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            load_shared(of_lane + start + quad / kBoxQuads * T::kBoxBytes +
                            (64 * s + 8 * half) * T::kRowBytes,
                        words[s][half]);
        split_codes<T>(words[s], quad % kBoxQuads * T::kQuadWords, codes[quad][s]);
      }
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int step = 0; step < 4; ++step)
#pragma unroll
        for (int s = 0; s < T::slabs; ++s)
          wgmma<T::rows>(codes[quad][s][step],
                         kDescriptor | (stages + start + quad * T::kXBytes + 32 * step) >> 4,
                         sums[s], std::make_index_sequence<T::rows / 2>());
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      // While a quad's products run the next one's codes are split, in registers of their own.
      asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(T::quads - 1) : "memory");
      const int left = T::quads == 1 ? stage : stage ? stage - 1 : T::stages - 1;
      if (quad == 0) arrive_at(empty + 8 * left, owner, arrives && (T::quads == 1 || i > 0));
    }
    if (++stage == T::stages) stage = 0, parity ^= 1;
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// A thread's sums to shared memory, which the stages have left: [rows, kPitch].
template <class T>
__device__ __forceinline__ void store_sums(const uint32_t (&sums)[T::slabs][T::rows / 2],
                                           uint32_t to) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int column = 64 * T::slabs * (warp / 4) + 16 * (warp % 4) + lane / 4;
#pragma unroll
  for (int s = 0; s < T::slabs; ++s)
#pragma unroll
    for (int i = 0; i < T::rows / 2; ++i) {
      const int row = i / 4 * 8 + 2 * (lane % 4) + i % 2;
      const int place = row * T::kPitch + column + 64 * s + 8 * (i / 2 % 2);
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + 4 * place), "r"(sums[s][i]) : "memory");
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
      const int rank = cluster_rank<T>(blockIdx.x % T::neighbours, other);
      add_part(from, rank, total);
      add_part(from + 16, rank, total + 4);
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
  extern __shared__ uint8_t memory[];
  const uint32_t stages = (shared_address(memory) + T::kAlignment - 1) & ~(T::kAlignment - 1u);
  const uint32_t full = stages + T::kWorkBytes, empty = full + 8 * T::stages;
  const Work work = work_of<T>(a);
  allow_next();
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::stages; ++i) {
      init_barrier(full + 8 * i, 1);
      init_barrier(empty + 8 * i, T::groups * T::neighbours);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if constexpr (T::neighbours > 1)
    sync_cluster();  // the neighbours' barriers are there
  else
    __syncthreads();
  if (threadIdx.x >= T::kWorkers) {
    if constexpr (T::kTakesRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == T::kWorkers)
      fetch<T>(x_map, weight_map, work, stages, full, empty);
    __syncwarp();
    sync_cluster();
  } else {
    if constexpr (T::kTakesRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    uint32_t sums[T::slabs][T::rows / 2] = {};
    wait_for_previous();
    multiply<T>(work, stages, full, empty, sums);
    sync_threads<1, T::kWorkers>();
    store_sums<T>(sums, stages);
    sync_cluster();
    finish<T>(a, work, stages);
  }
  sync_cluster();  // its memory is read by others until here
}

}  // namespace questtrain
