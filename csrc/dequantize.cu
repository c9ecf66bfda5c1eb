// Codes of 8, 4, 2 or 1 bits → values, 32 a thread: neighbouring threads read and write neighbouring
// 8 elements, so that every store of 16 bytes is coalesced.
#include "chunk.cuh"
#include "dequantize.h"
#include "launch.cuh"

namespace questtrain {
namespace {

constexpr int kThreads = 256;

// The codes of 8 elements.
template <int bits>
__device__ __forceinline__ uint64_t load_codes(const void* codes, int64_t chunk) {
  if constexpr (bits == 8) {
    const uint2 word = __ldcs(static_cast<const uint2*>(codes) + chunk);
    return static_cast<uint64_t>(word.y) << 32 | word.x;
  } else if constexpr (bits == 4) {
    return __ldcs(static_cast<const uint32_t*>(codes) + chunk);
  } else if constexpr (bits == 2) {
    return __ldcs(static_cast<const uint16_t*>(codes) + chunk);
  } else {
    return __ldcs(static_cast<const uint8_t*>(codes) + chunk);
  }
}

template <int bits>
__device__ __forceinline__ int code_at(uint64_t codes, int j) {
  if constexpr (bits == 8)
    return static_cast<int8_t>(codes >> (8 * j));
  else
    return static_cast<uint32_t>(codes) >> (bits * j) & ((1 << bits) - 1);
}

template <class T, int bits>
__global__ void __launch_bounds__(kThreads) dequantize_chunks(DequantizeArguments a) {
  const uint32_t row_chunks = a.width / 8;
  const int64_t chunks = a.rows * row_chunks;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunks * kThreads + threadIdx.x;
  allow_next();
  wait_for_previous();
  uint64_t codes[kChunks];
  float scale[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int64_t chunk = first + i * kThreads;
    if (chunk >= chunks) continue;
    codes[i] = load_codes<bits>(a.codes, chunk);
    scale[i] = a.scales[static_cast<uint32_t>(chunk) / row_chunks];
  }
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int64_t chunk = first + i * kThreads;
    if (chunk >= chunks) continue;
    Chunk<T> values;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int integer = a.factor * code_at<bits>(codes[i], j) + a.offset;
      values.element[j] = narrow<T>(static_cast<float>(integer) * scale[i]);
    }
    store_chunk(static_cast<Chunk<T>*>(a.values) + chunk, values);
  }
}

template <class T>
cudaError_t launch_bits(const DequantizeArguments& a, cudaStream_t stream) {
  constexpr int64_t of_block = int64_t{kChunks} * kThreads;
  const int64_t chunks = a.rows * (a.width / 8);
  const dim3 grid(static_cast<unsigned>((chunks + of_block - 1) / of_block)), block(kThreads);
  switch (a.bits) {
    case 1: return launch_dependent(dequantize_chunks<T, 1>, grid, block, 0, stream, a);
    case 2: return launch_dependent(dequantize_chunks<T, 2>, grid, block, 0, stream, a);
    case 4: return launch_dependent(dequantize_chunks<T, 4>, grid, block, 0, stream, a);
    default: return launch_dependent(dequantize_chunks<T, 8>, grid, block, 0, stream, a);
  }
}

}  // namespace

cudaError_t dequantize(const DequantizeArguments& a, cudaStream_t stream) {
  switch (a.output) {
    case Output::bfloat16: return launch_bits<__nv_bfloat16>(a, stream);
    case Output::half: return launch_bits<__half>(a, stream);
    default: return launch_bits<float>(a, stream);
  }
}

}  // namespace questtrain
