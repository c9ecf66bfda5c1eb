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
constexpr float kMagic = 12582912.f;  // 1.5·2^23: what is added to it lands rounded in its low bits

// 8 elements, as they lie in memory.
template <class T>
struct alignas(16) Chunk {
  T element[8];
};

// By 16 bytes; each row is read once and passes the caches by.
template <class T>
__device__ __forceinline__ Chunk<T> load_chunk(const Chunk<T>* source) {
  Chunk<T> result;
#pragma unroll
  for (int i = 0; i < int(sizeof(Chunk<T>) / 16); ++i)
    reinterpret_cast<uint4*>(&result)[i] = __ldcs(reinterpret_cast<const uint4*>(source) + i);
  return result;
}

// Of a vector that every row reads.
template <class T>
__device__ __forceinline__ Chunk<T> load_again(const Chunk<T>* source) {
  Chunk<T> result;
#pragma unroll
  for (int i = 0; i < int(sizeof(Chunk<T>) / 16); ++i)
    reinterpret_cast<uint4*>(&result)[i] = __ldg(reinterpret_cast<const uint4*>(source) + i);
  return result;
}

template <class T>
__device__ __forceinline__ void store_chunk(Chunk<T>* target, const Chunk<T>& value) {
#pragma unroll
  for (int i = 0; i < int(sizeof(Chunk<T>) / 16); ++i)
    reinterpret_cast<uint4*>(target)[i] = reinterpret_cast<const uint4*>(&value)[i];
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
__device__ __forceinline__ V warp_sum(V value) {
#pragma unroll
  for (int stride = 16; stride; stride >>= 1)
    value += __shfl_xor_sync(0xffffffffu, value, stride);
  return value;
}

template <>
__device__ __forceinline__ int32_t warp_sum(int32_t value) {
  return __reduce_add_sync(0xffffffffu, value);
}

template <class V>
__device__ __forceinline__ V row_sum(V value, V* shared, int warps) {
  value = warp_sum(value);
  if (warps == 1) return value;
  const int warp = threadIdx.x >> 5, first = warp / warps * warps;
  if ((threadIdx.x & 31) == 0) shared[warp] = value;
  __syncthreads();
  V total = 0;
  for (int i = 0; i < warps; ++i) total += shared[first + i];
  return total;
}

// ---- a thread's part of a row

template <class Rotation>
struct Part {
  int position[kChunks];  // of its chunks in the row
  bool inside[kChunks];
  int lane, warp, warps;

  __device__ __forceinline__ Part(int row_warps, int row_chunks)
      : lane(threadIdx.x & 31), warp((threadIdx.x >> 5) % row_warps), warps(row_warps) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      position[i] = Rotation::position(warp, lane, i);
      inside[i] = position[i] < row_chunks;
    }
  }
};

// The operand of RMSNorm or of the rotation: x alone, x + residual (stored as `hidden`), or
// silu(gate)·up. All loads are issued before the first is used.
template <class T, class Rotation, Operand operand>
__device__ __forceinline__ void load_operand(const QuantizeArguments& a, int64_t row,
                                             const Part<Rotation>& part, Chunk<T> (&x)[kChunks]) {
  constexpr bool two = operand == Operand::add_rmsnorm || operand == Operand::swiglu;
  const int chunks = a.width / 8;
  const Chunk<T>* first =
      static_cast<const Chunk<T>*>(a.x) + row * chunks * (operand == Operand::swiglu ? 2 : 1);
  const Chunk<T>* second = operand == Operand::swiglu
                               ? first + chunks
                               : static_cast<const Chunk<T>*>(a.residual) + row * chunks;
  Chunk<T> other[two ? kChunks : 1];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    x[i] = part.inside[i] ? load_chunk(first + part.position[i]) : Chunk<T>{};
    if constexpr (two) other[i] = part.inside[i] ? load_chunk(second + part.position[i]) : Chunk<T>{};
  }
  if constexpr (two)
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float p = static_cast<float>(x[i].element[j]);
        const float q = static_cast<float>(other[i].element[j]);
        x[i].element[j] =
            narrow<T>(operand == Operand::swiglu ? __fdividef(p, 1.f + __expf(-p)) * q : p + q);
      }
      if (operand == Operand::add_rmsnorm && a.hidden && part.inside[i])
        store_chunk(static_cast<Chunk<T>*>(a.hidden) + row * chunks + part.position[i], x[i]);
    }
}

template <class T, class W>
__device__ __forceinline__ void scale_by_weight(Chunk<T>& x, float factor, const Chunk<W>* weight) {
  const Chunk<W> w = load_again(weight);
#pragma unroll
  for (int j = 0; j < 8; ++j)
    x.element[j] = narrow<T>(static_cast<float>(x.element[j]) * factor *
                             static_cast<float>(w.element[j]));
}

template <class T, class Rotation>
__device__ __forceinline__ void normalize(const QuantizeArguments& a, const Part<Rotation>& part,
                                          float* shared, Chunk<T> (&x)[kChunks]) {
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < kChunks; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float value = static_cast<float>(x[i].element[j]);
      squares = fmaf(value, value, squares);
    }
  const float factor =
      rsqrtf(fmaf(row_sum(squares, shared, part.warps), a.inverse_width, a.epsilon));
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (!part.inside[i]) continue;
    if (a.weight_is_float)
      scale_by_weight(x[i], factor, static_cast<const Chunk<float>*>(a.weight) + part.position[i]);
    else
      scale_by_weight(x[i], factor, static_cast<const Chunk<T>*>(a.weight) + part.position[i]);
  }
}

// ---- codes

// The level indices of 8 elements, a byte each. v·inverse + 1/2 is the place on the grid, 0 … 1, and
// saturates at its ends; adding 1.5·2^23 to its multiple rounds half to even.
__device__ __forceinline__ uint2 level_indices(const float (&v)[8], float inverse, float steps) {
  uint32_t bits[8];
#pragma unroll
  for (int j = 0; j < 8; ++j)
    bits[j] = __float_as_uint(fmaf(__saturatef(fmaf(v[j], inverse, 0.5f)), steps, kMagic));
  return make_uint2(__byte_perm(__byte_perm(bits[0], bits[1], 0x0040),
                                __byte_perm(bits[2], bits[3], 0x0040), 0x5410),
                    __byte_perm(__byte_perm(bits[4], bits[5], 0x0040),
                                __byte_perm(bits[6], bits[7], 0x0040), 0x5410));
}

// 2q - (n-1) in each byte: shifted up by 128 no byte overflows, and the sign bit shifts it back.
__device__ __forceinline__ uint2 integer_codes(uint2 indices, int levels) {
  const uint32_t lift = (129 - levels) * 0x01010101u;
  return make_uint2(((indices.x << 1) + lift) ^ 0x80808080u,
                    ((indices.y << 1) + lift) ^ 0x80808080u);
}

__device__ __forceinline__ int32_t add_codes(uint2 codes, int32_t sum) {
  return __dp4a(int(codes.x), 0x01010101, __dp4a(int(codes.y), 0x01010101, sum));
}

__device__ __forceinline__ float squares_of(const float (&v)[kChunks][8]) {
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < kChunks; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) squares = fmaf(v[i][j], v[i][j], squares);
  return squares;
}

// s = alpha · rms, from the sum of squares of a row before it is scaled to be orthonormal.
__device__ __forceinline__ float half_width_of(const QuantizeArguments& a, float squares) {
  const float rms = sqrtf(squares * a.inverse_width) * a.orthonormal;
  return a.alpha * (rms < kTiny ? kTiny : rms);  // NaN stays NaN
}

// The low `bits` bits of each byte, closed up: 8 indices in 8·bits bits.
__device__ __forceinline__ uint32_t close_up(uint2 indices, int bits) {
  uint32_t packed = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    packed |= (indices.x >> (8 * j) & 15u) << (bits * j);
    packed |= (indices.y >> (8 * j) & 15u) << (bits * (j + 4));
  }
  return packed;
}

__device__ __forceinline__ void store_packed(const QuantizeArguments& a, int64_t chunk,
                                             uint2 indices) {
  switch (a.container_bits) {
    case 4: static_cast<uint32_t*>(a.codes)[chunk] = close_up(indices, 4); break;
    case 2: static_cast<uint16_t*>(a.codes)[chunk] = close_up(indices, 2); break;
    default: static_cast<uint8_t*>(a.codes)[chunk] = close_up(indices, 1);
  }
}

// The thread's part of a rotated row → codes, scale, sum and mask in memory.
template <class Rotation, bool packed>
__device__ __forceinline__ void quantize_row(const QuantizeArguments& a, int64_t row, bool exists,
                                             const Part<Rotation>& part,
                                             const float (&v)[kChunks][8], float* squares_of_row,
                                             int32_t* codes_of_row) {
  const float half_width =
      half_width_of(a, row_sum(squares_of(v), squares_of_row, part.warps));
  const float inverse = __fdividef(0.5f * a.orthonormal, half_width);
  int32_t sum = 0;
  const int64_t first = row * (a.width / 8);
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (!exists || !part.inside[i]) continue;
    const uint2 indices = level_indices(v[i], inverse, a.steps);
    const uint2 codes = integer_codes(indices, a.levels);
    sum = add_codes(codes, sum);
    if constexpr (packed)
      store_packed(a, first + part.position[i], indices);
    else
      (static_cast<uint2*>(a.codes) + first)[part.position[i]] = codes;
  }
  if (a.mask) {
    const float trusted = a.trust * half_width / a.orthonormal;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      if (!exists || !part.inside[i]) continue;
      uint32_t bits = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) bits |= (fabsf(v[i][j]) <= trusted ? 1u : 0u) << j;
      (a.mask + first)[part.position[i]] = static_cast<uint8_t>(bits);
    }
  }
  sum = row_sum(sum, codes_of_row, part.warps);
  if (part.warp == 0 && part.lane == 0 && exists) {
    a.scales[row] = half_width * a.inverse_steps;
    a.sums[row] = sum;
  }
}

// Registers that keep most threads resident without spills that cost more.
constexpr int registers_for(Operand operand) {
  return operand == Operand::rmsnorm || operand == Operand::add_rmsnorm ? 64 : 56;
}

template <class T, class Rotation, Operand operand, bool packed>
__global__ void __maxnreg__(registers_for(operand)) quantize_rows(QuantizeArguments a, int warps) {
  __shared__ float squares_of_row[32], squares_of_operand[32];
  __shared__ int32_t codes_of_row[32];
  Part<Rotation> part(warps, a.width / 8);
  const int rows_per_block = blockDim.x / 32 / warps;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * rows_per_block + (threadIdx.x >> 5) / warps;
  const bool exists = row < a.rows;
  if (!exists)
#pragma unroll
    for (int i = 0; i < kChunks; ++i) part.inside[i] = false;
  allow_next();
  wait_for_previous();

  Chunk<T> x[kChunks];
  load_operand<T, Rotation, operand>(a, row, part, x);
  if constexpr (operand == Operand::rmsnorm || operand == Operand::add_rmsnorm)
    normalize<T, Rotation>(a, part, squares_of_operand, x);
  float v[kChunks][8];
  Rotation::apply(x, v, a.block, part.lane);
  quantize_row<Rotation, packed>(a, row, exists, part, v, squares_of_row, codes_of_row);
}

// ---- launching

template <class T, class Rotation, Operand operand>
cudaError_t launch_rows(const QuantizeArguments& a, cudaStream_t stream) {
  const int warps = (a.width + kWarpElements - 1) / kWarpElements;
  const int rows_per_block = warps < 4 ? 4 / warps : 1;
  const dim3 grid(static_cast<unsigned>((a.rows + rows_per_block - 1) / rows_per_block));
  const dim3 block(32 * warps * rows_per_block);
  return a.container_bits == 8
             ? launch_dependent(quantize_rows<T, Rotation, operand, false>, grid, block, 0, stream,
                                a, warps)
             : launch_dependent(quantize_rows<T, Rotation, operand, true>, grid, block, 0, stream,
                                a, warps);
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
