// torch.ops.questtrain.dequantize: codes of 8, 4, 2 or 1 bits → values, 32 a thread: neighbouring
// threads read and write neighbouring 8 elements, so that every store of 16 bytes is coalesced. And
// .unpack: packed level indices → int8 integer codes, 16 a thread.
#include "chunk.cuh"
#include "launch.cuh"
#include "stable.h"

namespace questtrain {
namespace {

struct DequantizeArguments {
  const void* codes;    // int8 [rows, width], or packed
  const float* scales;  // [rows]
  void* values;         // [rows, width]
  int64_t rows;
  int width;           // a multiple of 8
  int bits;            // a code's: 8, or 1, 2, 4 of a packed one
  int factor, offset;  // a code's integer is factor·code + offset
};

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

Tensor dequantize(Tensor codes, Tensor scales, int64_t levels, ScalarType dtype) {
  const Check check("dequantize", codes);
  check.output(dtype);
  const bool packed = codes.scalar_type() == ScalarType::Byte;
  DequantizeArguments arguments{};
  const auto [start, bits, width] = codes_of(check, codes, levels);
  const int64_t rows = codes.size(0);
  check_size(check, rows, width);
  arguments.scales = check.vector<float>("scales", scales, rows);
  Tensor values = torch::stable::new_empty(codes, {rows, width}, dtype);
  if (rows == 0) return values;

  const bool doubled = packed || levels == kOffsetLevels;
  arguments.codes = start;
  arguments.values = values.data_ptr();
  arguments.rows = rows;
  arguments.width = static_cast<int>(width);
  arguments.bits = bits;
  arguments.factor = doubled ? 2 : 1;
  arguments.offset = packed ? 1 - static_cast<int>(levels) : doubled ? 1 : 0;
  const auto kernel = by_element(dtype, launch_bits<__nv_bfloat16>, launch_bits<__half>,
                                 launch_bits<float>);
  launch_op(check, kernel, arguments);
  return values;
}

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

// `count` values from 8·count/bits bytes; count is a multiple of 16.
cudaError_t launch_unpack(const uint8_t* packed, int8_t* values, int64_t count, int bits,
                          int levels, cudaStream_t stream) {
  const int64_t pieces = count / 16;
  const dim3 grid(static_cast<unsigned>((pieces + 255) / 256)), block(256);
  switch (bits) {
    case 1: return launch_dependent(unpack_kernel<1>, grid, block, 0, stream, packed, values, pieces, levels);
    case 2: return launch_dependent(unpack_kernel<2>, grid, block, 0, stream, packed, values, pieces, levels);
    default: return launch_dependent(unpack_kernel<4>, grid, block, 0, stream, packed, values, pieces, levels);
  }
}

Tensor unpack(Tensor packed, int64_t levels) {
  const Check check("unpack", packed);
  const auto [codes, bits, width] = packed_codes(check, packed, levels);
  const int64_t count = packed.size(0) * width;
  Tensor values = torch::stable::new_empty(packed, {packed.size(0), width}, ScalarType::Char);
  if (count)
    launch_op(check, launch_unpack, static_cast<const uint8_t*>(codes),
              static_cast<int8_t*>(values.data_ptr()), count, bits, static_cast<int>(levels));
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("dequantize", TORCH_BOX(&dequantize));
  m.impl("unpack", TORCH_BOX(&unpack));
}

}  // namespace questtrain
