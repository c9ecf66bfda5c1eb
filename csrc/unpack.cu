// Packed level indices → int8 integer codes, 16 a thread.
#include "launch.cuh"
#include "packed_linear.h"

namespace questtrain {
namespace {

template <int bits>
__global__ void unpack_kernel(const uint8_t* __restrict__ packed, int8_t* __restrict__ values,
                              int64_t pieces, int levels) {
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  allow_next();
  wait_for_previous();
  if (piece >= pieces) return;
  uint64_t word;
  if constexpr (bits == 4)
    word = reinterpret_cast<const uint64_t*>(packed)[piece];
  else if constexpr (bits == 2)
    word = reinterpret_cast<const uint32_t*>(packed)[piece];
  else
    word = reinterpret_cast<const uint16_t*>(packed)[piece];
  alignas(16) int8_t out[16];
#pragma unroll
  for (int i = 0; i < 16; ++i)
    out[i] = static_cast<int8_t>(2 * int(word >> (bits * i) & ((1 << bits) - 1)) - (levels - 1));
  reinterpret_cast<uint4*>(values)[piece] = *reinterpret_cast<const uint4*>(out);
}

}  // namespace

cudaError_t unpack(const uint8_t* packed, int8_t* values, int64_t count, int bits, int levels,
                   cudaStream_t stream) {
  const int64_t pieces = count / 16;
  const dim3 grid(static_cast<unsigned>((pieces + 255) / 256)), block(256);
  switch (bits) {
    case 1: return launch_dependent(unpack_kernel<1>, grid, block, 0, stream, packed, values, pieces, levels);
    case 2: return launch_dependent(unpack_kernel<2>, grid, block, 0, stream, packed, values, pieces, levels);
    default: return launch_dependent(unpack_kernel<4>, grid, block, 0, stream, packed, values, pieces, levels);
  }
}

}  // namespace questtrain
