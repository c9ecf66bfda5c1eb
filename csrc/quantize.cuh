// One kernel: [add +] [RMSNorm | SwiGLU] → Hadamard transform → row rms → codes, one pass over memory.
//
// A row is shared by warps of 1,024 elements each; a thread holds 4 chunks of 8 consecutive
// elements, 16 bytes in bf16. Two ways to rotate:
// - TensorCore, for 16-bit operands and blocks of 128. H_128 = H_16 ⊗ H_8: the tensor cores
//   multiply by H_16 (±1 is exact in bf16, sums are fp32), three stages of additions within the
//   thread do the rest. No shuffles, no conversion to fp32: half the instructions of a butterfly.
// - Butterfly, for fp32 operands and the other blocks: 3 stages within the chunk, then shuffles.
// The fused forms round what they normalize to x's dtype once, so each equals the composition of
// its parts.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "launch.cuh"
#include "quantize.h"

namespace questtrain {

constexpr int kChunks = 4;            // a thread's
constexpr int kWarpElements = 1024;   // 32 lanes · 4 chunks · 8
constexpr float kTiny = 1e-30f;       // smallest rms: an all-zero row stays finite
constexpr float kMagic = 12582912.f;  // 1.5·2^23: adding it rounds half to even, to the low bits

// 8 elements, as they lie in memory.
template <class T>
struct alignas(16) Chunk {
  T element[8];
};

template <class T>
__device__ __forceinline__ Chunk<T> load_chunk(const void* matrix, size_t chunk) {
  Chunk<T> result;
  const uint4* source = reinterpret_cast<const uint4*>(static_cast<const Chunk<T>*>(matrix) + chunk);
  uint4* target = reinterpret_cast<uint4*>(&result);
#pragma unroll
  for (int i = 0; i < int(sizeof(Chunk<T>) / 16); ++i) target[i] = __ldcs(source + i);
  return result;
}

// As above for weights, which every row reads again.
template <class T>
__device__ __forceinline__ Chunk<T> load_shared_chunk(const void* vector, int chunk) {
  Chunk<T> result;
  const uint4* source = reinterpret_cast<const uint4*>(static_cast<const Chunk<T>*>(vector) + chunk);
  uint4* target = reinterpret_cast<uint4*>(&result);
#pragma unroll
  for (int i = 0; i < int(sizeof(Chunk<T>) / 16); ++i) target[i] = __ldg(source + i);
  return result;
}

template <class T>
__device__ __forceinline__ void store_chunk(void* matrix, size_t chunk, const Chunk<T>& value) {
  uint4* target = reinterpret_cast<uint4*>(static_cast<Chunk<T>*>(matrix) + chunk);
  const uint4* source = reinterpret_cast<const uint4*>(&value);
#pragma unroll
  for (int i = 0; i < int(sizeof(Chunk<T>) / 16); ++i) target[i] = source[i];
}

template <class T>
__device__ __forceinline__ T narrow(float value);

template <>
__device__ __forceinline__ float narrow(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half narrow(float value) {
  return __float2half_rn(value);
}

// ---- rotations: which chunk of its row a thread's i-th is, and the unnormalized transform

struct Butterfly {
  static __device__ __forceinline__ int position(int warp, int lane, int i) {
    return warp * 128 + i * 32 + lane;
  }

  template <class T>
  static __device__ __forceinline__ void apply(const Chunk<T> (&x)[kChunks],
                                               float (&v)[kChunks][8], int block, int lane) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) v[i][j] = static_cast<float>(x[i].element[j]);
      if (block == 1) continue;
#pragma unroll
      for (int stride = 1; stride < 8; stride <<= 1)
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (!(j & stride)) {
            const float a = v[i][j], b = v[i][j | stride];
            v[i][j] = a + b;
            v[i][j | stride] = a - b;
          }
#pragma unroll
      for (int stride = 1; stride < 32; stride <<= 1) {
        if (stride * 8 >= block) continue;
        const float sign = (lane & stride) ? -1.f : 1.f;
#pragma unroll
        for (int j = 0; j < 8; ++j)
          v[i][j] = fmaf(sign, v[i][j], __shfl_xor_sync(0xffffffffu, v[i][j], stride));
      }
    }
  }
};

// mma.m16n8k16 with the warp's 8 blocks of 128 as rows. Of an element's index in its block, bits
// 0, 1 (place in the chunk) and 3, 4 (lane within the quad) are summed over by the tensor core;
// bit 2 tells rows g from g + 8; bits 5, 6 number the thread's chunks.
struct TensorCore {
  static __device__ __forceinline__ int position(int warp, int lane, int i) {
    return (warp * 8 + (lane >> 2)) * 16 + i * 4 + (lane & 3);
  }

  // Column n = 8·tile + g of H_16 stands for quad lane g/2 and place g%2 + 2·tile; row k for quad
  // lane t and places 0, 1 (register 0) or 2, 3 (register 1). Two entries of ±1 a register.
  template <class T>
  static __device__ __forceinline__ uint32_t signs(int lane, int tile, int half) {
    const int t = lane & 3, g = lane >> 2, place = (g & 1) + 2 * tile;
    const uint32_t one = std::is_same<T, __half>::value ? 0x3c00u : 0x3f80u;
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int parity = (__popc(t & (g >> 1)) + __popc((i + 2 * half) & place)) & 1;
      bits |= (one | (parity << 15)) << (16 * i);
    }
    return bits;
  }

  template <class T>
  static __device__ __forceinline__ void multiply(float* c, const uint4& a, uint32_t b0,
                                                  uint32_t b1) {
    if constexpr (std::is_same<T, __half>::value)
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
          "{%10,%10,%10,%10};"
          : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
          : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "r"(b0), "r"(b1), "f"(0.f));
    else
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
          "{%8,%9}, {%10,%10,%10,%10};"
          : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
          : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "r"(b0), "r"(b1), "f"(0.f));
  }

  template <class T>
  static __device__ __forceinline__ void apply(const Chunk<T> (&x)[kChunks],
                                               float (&v)[kChunks][8], int, int lane) {
    const uint32_t b00 = signs<T>(lane, 0, 0), b01 = signs<T>(lane, 0, 1);
    const uint32_t b10 = signs<T>(lane, 1, 0), b11 = signs<T>(lane, 1, 1);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const uint4 a = *reinterpret_cast<const uint4*>(&x[i]);
      float low[4], high[4];  // places 0, 1 and 2, 3, first of bit 2 clear, then of bit 2 set
      multiply<T>(low, a, b00, b01);
      multiply<T>(high, a, b10, b11);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        v[i][j] = low[j] + low[j + 2];
        v[i][j + 4] = low[j] - low[j + 2];
        v[i][j + 2] = high[j] + high[j + 2];
        v[i][j + 6] = high[j] - high[j + 2];
      }
    }
#pragma unroll
    for (int stride = 1; stride < kChunks; stride <<= 1)
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
        if (!(i & stride))
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            const float a = v[i][j], b = v[i | stride][j];
            v[i][j] = a + b;
            v[i | stride][j] = a - b;
          }
  }
};

// ---- sums over a row's warps; each use has shared memory of its own, so one barrier is enough

template <class V>
__device__ __forceinline__ V row_sum(V value, V* shared, int warps) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int stride = 16; stride; stride >>= 1)
    value += __shfl_xor_sync(0xffffffffu, value, stride);
  if (warps == 1) return value;
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  const int first = warp / warps * warps;
  V total = 0;
  for (int i = 0; i < warps; ++i) total += shared[first + i];
  return total;
}

// ---- the operand of the rotation, in x's dtype

struct Row {
  int64_t index;
  int chunks;  // of 8 elements, in the whole row
  bool exists;
};

__device__ __forceinline__ bool holds(const Row& row, int position) {
  return row.exists && position < row.chunks;
}

template <class T, class Rotation, Operand operand>
__device__ __forceinline__ void load_operand(const QuantizeArguments& a, const Row& row, int warp,
                                             int lane, Chunk<T> (&x)[kChunks]) {
  Chunk<T> second[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int position = Rotation::position(warp, lane, i);
    x[i] = second[i] = Chunk<T>{};
    if (!holds(row, position)) continue;
    const size_t at = row.index * row.chunks + position;
    if constexpr (operand == Operand::swiglu) {
      x[i] = load_chunk<T>(a.x, at + row.index * row.chunks);
      second[i] = load_chunk<T>(a.x, at + (row.index + 1) * row.chunks);
    } else {
      x[i] = load_chunk<T>(a.x, at);
      if constexpr (operand == Operand::add_rmsnorm) second[i] = load_chunk<T>(a.residual, at);
    }
  }
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if constexpr (operand == Operand::swiglu) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float gate = static_cast<float>(x[i].element[j]);
        const float up = static_cast<float>(second[i].element[j]);
        x[i].element[j] = narrow<T>(__fdividef(gate, 1.f + __expf(-gate)) * up);
      }
    } else if constexpr (operand == Operand::add_rmsnorm) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        x[i].element[j] = narrow<T>(static_cast<float>(x[i].element[j]) +
                                    static_cast<float>(second[i].element[j]));
      const int position = Rotation::position(warp, lane, i);
      if (holds(row, position)) store_chunk(a.hidden, row.index * row.chunks + position, x[i]);
    }
  }
}

template <class T, class W>
__device__ __forceinline__ void scale_by_weight(Chunk<T>& x, float factor, const void* weight,
                                                int position) {
  const Chunk<W> w = load_shared_chunk<W>(weight, position);
#pragma unroll
  for (int j = 0; j < 8; ++j)
    x.element[j] = narrow<T>(static_cast<float>(x.element[j]) * factor *
                             static_cast<float>(w.element[j]));
}

template <class T, class Rotation>
__device__ __forceinline__ void normalize(const QuantizeArguments& a, const Row& row, int warp,
                                          int lane, int warps, float* shared,
                                          Chunk<T> (&x)[kChunks]) {
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < kChunks; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float value = static_cast<float>(x[i].element[j]);
      squares = fmaf(value, value, squares);
    }
  const float factor = rsqrtf(row_sum(squares, shared, warps) / a.width + a.epsilon);
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int position = Rotation::position(warp, lane, i);
    if (!holds(row, position)) continue;
    if (a.weight_is_float)
      scale_by_weight<T, float>(x[i], factor, a.weight, position);
    else
      scale_by_weight<T, T>(x[i], factor, a.weight, position);
  }
}

// ---- codes

// The level indices of 8 elements, a byte each: clamp(round_half_even(v·inverse + offset)).
__device__ __forceinline__ uint2 level_indices(const float (&v)[8], float inverse, float offset) {
  uint32_t bits[8];
#pragma unroll
  for (int j = 0; j < 8; ++j)
    bits[j] = __float_as_uint(
        fminf(fmaxf(fmaf(v[j], inverse, offset), 0.f), 2.f * offset) + kMagic);
  return make_uint2(__byte_perm(__byte_perm(bits[0], bits[1], 0x0040),
                                __byte_perm(bits[2], bits[3], 0x0040), 0x5410),
                    __byte_perm(__byte_perm(bits[4], bits[5], 0x0040),
                                __byte_perm(bits[6], bits[7], 0x0040), 0x5410));
}

// 2q - (n-1) in each byte: shifted up by 128 no byte overflows, and the sign bit shifts it back.
__device__ __forceinline__ uint32_t integer_codes(uint32_t indices, int levels) {
  return ((indices << 1) + (129 - levels) * 0x01010101u) ^ 0x80808080u;
}

// The low `width` bits of each byte, closed up: 8 indices in 8·width bits.
__device__ __forceinline__ uint32_t close_up(uint2 indices, int width) {
  uint32_t packed = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    packed |= (indices.x >> (8 * j) & 15u) << (width * j);
    packed |= (indices.y >> (8 * j) & 15u) << (width * (j + 4));
  }
  return packed;
}

__device__ __forceinline__ void store_codes(const QuantizeArguments& a, size_t chunk,
                                            uint2 indices, uint2 codes) {
  switch (a.container_bits) {
    case 8: static_cast<uint2*>(a.codes)[chunk] = codes; break;
    case 4: static_cast<uint32_t*>(a.codes)[chunk] = close_up(indices, 4); break;
    case 2: static_cast<uint16_t*>(a.codes)[chunk] = close_up(indices, 2); break;
    default: static_cast<uint8_t*>(a.codes)[chunk] = close_up(indices, 1);
  }
}

template <class T, class Rotation, Operand operand>
__global__ void __launch_bounds__(1024) quantize_rows(QuantizeArguments a, int warps) {
  __shared__ float squares_of_row[32], squares_of_operand[32];
  __shared__ int32_t codes_of_row[32];
  const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) % warps;
  const int64_t rows_per_block = blockDim.x / 32 / warps;
  const int64_t index = blockIdx.x * rows_per_block + (threadIdx.x >> 5) / warps;
  const Row row{index, a.width / 8, index < a.rows};
  allow_next();
  wait_for_previous();

  Chunk<T> x[kChunks];
  load_operand<T, Rotation, operand>(a, row, warp, lane, x);
  if constexpr (operand == Operand::rmsnorm || operand == Operand::add_rmsnorm)
    normalize<T, Rotation>(a, row, warp, lane, warps, squares_of_operand, x);

  float v[kChunks][8];
  Rotation::apply(x, v, a.block, lane);
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < kChunks; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) squares = fmaf(v[i][j], v[i][j], squares);
  squares = row_sum(squares, squares_of_row, warps);

  const float orthonormal = rsqrtf(static_cast<float>(a.block));
  const float rms = sqrtf(squares / a.width) * orthonormal;
  const float half_width = a.alpha * (rms < kTiny ? kTiny : rms);  // NaN stays NaN
  const float offset = 0.5f * (a.levels - 1), inverse = orthonormal / half_width * offset;
  const float trusted = a.trust * half_width / orthonormal;
  int32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int position = Rotation::position(warp, lane, i);
    if (!holds(row, position)) continue;
    const uint2 indices = level_indices(v[i], inverse, offset);
    const uint2 codes = make_uint2(integer_codes(indices.x, a.levels),
                                   integer_codes(indices.y, a.levels));
    sum = __dp4a(int(codes.x), 0x01010101, __dp4a(int(codes.y), 0x01010101, sum));
    const size_t chunk = row.index * row.chunks + position;
    store_codes(a, chunk, indices, codes);
    if (a.mask) {
      uint32_t bits = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) bits |= (fabsf(v[i][j]) <= trusted ? 1u : 0u) << j;
      a.mask[chunk] = static_cast<uint8_t>(bits);
    }
  }
  sum = row_sum(sum, codes_of_row, warps);
  if (warp == 0 && lane == 0 && row.exists) {
    a.scales[row.index] = half_width / (a.levels - 1);
    a.sums[row.index] = sum;
  }
}

// ---- launching

template <class T, class Rotation, Operand operand>
cudaError_t launch_rows(const QuantizeArguments& a, cudaStream_t stream) {
  const int warps = (a.width + kWarpElements - 1) / kWarpElements;
  const int rows_per_block = warps < 4 ? 4 / warps : 1;
  const int64_t blocks = (a.rows + rows_per_block - 1) / rows_per_block;
  return launch_dependent(quantize_rows<T, Rotation, operand>, dim3(unsigned(blocks)),
                          dim3(32 * warps * rows_per_block), 0, stream, a, warps);
}

template <class T, class Rotation>
cudaError_t launch_operand(Operand operand, const QuantizeArguments& a, cudaStream_t stream) {
  switch (operand) {
    case Operand::plain: return launch_rows<T, Rotation, Operand::plain>(a, stream);
    case Operand::rmsnorm: return launch_rows<T, Rotation, Operand::rmsnorm>(a, stream);
    case Operand::add_rmsnorm: return launch_rows<T, Rotation, Operand::add_rmsnorm>(a, stream);
    default: return launch_rows<T, Rotation, Operand::swiglu>(a, stream);
  }
}

template <class T>
cudaError_t launch_quantize(Operand operand, const QuantizeArguments& a, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2)
    if (a.block == 128) return launch_operand<T, TensorCore>(operand, a, stream);
  return launch_operand<T, Butterfly>(operand, a, stream);
}

}  // namespace questtrain
