// y = x·wᵀ with a 4-bit weight of which 2 of each 4 consecutive pairs are pruned to 0.
//
// 0 is not on the odd grid, so that the sum over the kept values has no rank-1 correction: with
// v = 2q - 15 it is Σ 4·q_x·q_w - 30·q_x - 30·q_w + 225, and Σ q_x depends on which values a weight
// row keeps. That term is a second sparse product, with ones for the weight and the same metadata,
// which costs tensor core time but no memory.
//
// mma.sp.m16n8k128: the sparse weight is A, so that yᵀ is computed. Fragments: PTX ISA, "Matrix
// Fragments for sparse mma.m16n8k128 with .u4"; lane 4g + t has the metadata of row g + 8·(t % 2),
// 64 columns from 64·(t / 2) on.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../stable.h"

namespace questtrain {
namespace {

struct Int4SparseArguments {
  const uint8_t* x;            // [rows, width / 2]
  const uint8_t* weight;       // [columns, width / 4]: the kept indices
  const uint8_t* metadata;     // [columns, width / 16]: which pairs they are
  const float* x_scales;       // [rows]
  const float* weight_scales;  // [columns]
  void* y;                     // [rows, columns]
  Output output;
  int rows, columns, width;
};

constexpr int kWarps = 4, kColumnsOfWarp = 16, kRowTiles = 4, kRowsOfBlock = 8 * kRowTiles;
constexpr int kStep = 128;

__device__ __forceinline__ void sparse_multiply_add(int32_t (&c)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[4], uint32_t metadata) {
  asm("mma.sp::ordered_metadata.sync.aligned.m16n8k128.row.col.s32.u4.u4.s32 {%0,%1,%2,%3}, "
      "{%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 0x0;"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(metadata));
}

__device__ __forceinline__ uint32_t word_at(const uint8_t* address) {
  return *reinterpret_cast<const uint32_t*>(address);
}

__device__ __forceinline__ int32_t sum_of_nibbles(uint32_t word) {
  return __dp4a(word & 0x0f0f0f0fu, 0x01010101u, __dp4a(word >> 4 & 0x0f0f0f0fu, 0x01010101u, 0u));
}

__device__ __forceinline__ void store_value(const Int4SparseArguments& a, int row, int column,
                                            int32_t sum) {
  const float value = a.x_scales[row] * (a.weight_scales[column] * static_cast<float>(sum));
  const size_t at = static_cast<size_t>(row) * a.columns + column;
  switch (a.output) {
    case Output::bfloat16: static_cast<__nv_bfloat16*>(a.y)[at] = __float2bfloat16_rn(value); break;
    case Output::half: static_cast<__half*>(a.y)[at] = __float2half_rn(value); break;
    default: static_cast<float*>(a.y)[at] = value;
  }
}

__global__ void __launch_bounds__(32 * kWarps) int4_sparse_kernel(Int4SparseArguments a) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int column = (blockIdx.x * kWarps + (threadIdx.x >> 5)) * kColumnsOfWarp;
  const int first_row = blockIdx.y * kRowsOfBlock;
  if (column >= a.columns) return;
  const uint8_t* weight = a.weight + static_cast<size_t>(column + g) * (a.width / 4) + 4 * t;
  const size_t eight_rows = static_cast<size_t>(8) * (a.width / 4);
  const uint8_t* metadata =
      a.metadata + static_cast<size_t>(column + g + 8 * (t % 2)) * (a.width / 16) + 4 * (t / 2);
  const uint32_t ones[4] = {0x11111111u, 0x11111111u, 0x11111111u, 0x11111111u};

  int32_t products[kRowTiles][4] = {}, kept[kRowTiles][4] = {};
  int32_t weight_sums[2] = {};  // of rows g and g + 8, this lane's part
  for (int step = 0; step < a.width / kStep; ++step) {
    const uint8_t* at = weight + step * (kStep / 4);
    const uint32_t w[4] = {word_at(at), word_at(at + eight_rows), word_at(at + 16),
                           word_at(at + eight_rows + 16)};
    const uint32_t pairs = word_at(metadata + step * (kStep / 16));
    weight_sums[0] += sum_of_nibbles(w[0]) + sum_of_nibbles(w[2]);
    weight_sums[1] += sum_of_nibbles(w[1]) + sum_of_nibbles(w[3]);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const int row = first_row + 8 * r + g;
      uint32_t x[4] = {};
      if (row < a.rows) {
        const uint8_t* source =
            a.x + static_cast<size_t>(row) * (a.width / 2) + step * (kStep / 2) + 4 * t;
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = word_at(source + 16 * i);
      }
      sparse_multiply_add(products[r], w, x, pairs);
      sparse_multiply_add(kept[r], ones, x, pairs);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int stride = 1; stride < 4; stride <<= 1)
      weight_sums[half] += __shfl_xor_sync(0xffffffffu, weight_sums[half], stride);

  const int32_t constant = 225 * (a.width / 2);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + 8 * r + 2 * t + i % 2;
      if (row >= a.rows) continue;
      const int32_t sum =
          4 * products[r][i] - 30 * (kept[r][i] + weight_sums[i / 2]) + constant;
      store_value(a, row, column + g + 8 * (i / 2), sum);
    }
}

cudaError_t launch(const Int4SparseArguments& a, cudaStream_t stream) {
  const int columns_of_block = kWarps * kColumnsOfWarp;
  const dim3 grid((a.columns + columns_of_block - 1) / columns_of_block,
                  (a.rows + kRowsOfBlock - 1) / kRowsOfBlock);
  int4_sparse_kernel<<<grid, 32 * kWarps, 0, stream>>>(a);
  return cudaGetLastError();
}

// ---- the op

Tensor int4_sparse_linear(Tensor x, Tensor x_scales, Tensor weight, Tensor metadata,
                          Tensor weight_scales, ScalarType dtype) {
  const Check check("int4_sparse_linear", x);
  const ProductOperands operands = product_operands<uint8_t, uint8_t>(
      check, x, x_scales, 2, weight, weight_scales, 2, {128, 16}, dtype);
  Int4SparseArguments arguments{};
  arguments.x = static_cast<const uint8_t*>(operands.x);
  arguments.weight = static_cast<const uint8_t*>(operands.weight);
  arguments.metadata = check.matrix<uint8_t>("metadata", metadata, operands.columns,
                                            operands.width / 16);
  arguments.x_scales = operands.x_scales;
  arguments.weight_scales = operands.weight_scales;
  arguments.output = output_of(dtype);
  arguments.rows = static_cast<int>(operands.rows);
  arguments.columns = static_cast<int>(operands.columns);
  arguments.width = static_cast<int>(operands.width);
  Tensor y = torch::stable::new_empty(x, {operands.rows, operands.columns}, dtype);
  arguments.y = y.data_ptr();
  if (operands.rows) launch_op(check, launch, arguments);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("int4_sparse_linear", TORCH_BOX(&int4_sparse_linear));
}

}  // namespace questtrain
