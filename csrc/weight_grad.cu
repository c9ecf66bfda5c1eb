// The gradient of RMSNorm's weight: how many blocks sum it, and the sum of their sums.
#include <algorithm>

#include "backward.h"
#include "launch.cuh"
#include "rows.cuh"

namespace questtrain {
namespace {

constexpr int kWarps = 16;  // of a block: a multiprocessor has one, of 128 registers a thread

constexpr int kThreads = 512;
constexpr int kColumns = 8;                 // a block's, of 4 floats each
constexpr int kRows = kThreads / kColumns;  // that it reads at a time

__global__ void __launch_bounds__(kThreads)
    sum_columns(const float4* source, float4* sums, int rows, int columns) {
  __shared__ float4 of_row[kRows][kColumns];
  const int lane = threadIdx.x % kColumns, first = threadIdx.x / kColumns;
  const int column = blockIdx.x * kColumns + lane;
  allow_next();
  wait_for_previous();
  float4 sum{};
#pragma unroll 4
  for (int row = first; row < rows; row += kRows)
    add_to(sum, source[int64_t(row) * columns + column]);
  of_row[first][lane] = sum;
  for (int half = kRows / 2; half; half /= 2) {
    __syncthreads();
    if (first < half) add_to(of_row[first][lane], of_row[first + half][lane]);
  }
  if (first == 0) sums[column] = of_row[0][lane];
}

}  // namespace

NormGrid norm_grid(int64_t rows, int width) {
  const int warps = (width + kWarpElements - 1) / kWarpElements;
  const int slots = kWarps / warps;
  const int64_t blocks = device_attribute(cudaDevAttrMultiProcessorCount);
  return {warps, slots, static_cast<int>(std::min(blocks, (rows + slots - 1) / slots))};
}

cudaError_t sum_weight_grads(const float* weight_grads, float* sum, int blocks, int width,
                             cudaStream_t stream) {
  return launch_dependent(sum_columns, dim3(width / (4 * kColumns)), dim3(kThreads), 0, stream,
                          reinterpret_cast<const float4*>(weight_grads),
                          reinterpret_cast<float4*>(sum), blocks, width / 4);
}

}  // namespace questtrain
