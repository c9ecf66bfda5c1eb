// From memory to codes in registers: [add +] [RMSNorm | SwiGLU] → Hadamard transform → row rms → codes.
//
// A row is shared by warps of 1,024 elements each. RMSNorm's factor is one number a row, so it changes
// the row's scale and no code: x·weight is rotated, and both sums of squares are made together.
#pragma once

#include "launch.cuh"
#include "quantize.h"
#include "rows.cuh"

namespace questtrain {

constexpr float kTiny = 1e-30f;       // smallest rms: an all-zero row stays finite
constexpr float kMagic = 12582912.f;  // 1.5·2^23: what is added to it lands rounded in its low bits

constexpr bool normalizes(Operand operand) {
  return operand == Operand::rmsnorm || operand == Operand::add_rmsnorm;
}

// What is rotated: rounded to x's dtype, but x·weight of fp16, which may be too large for it.
template <class T, Operand operand>
using Rotated = std::conditional_t<normalizes(operand) && std::is_same_v<T, __half>, float, T>;

// The tensor cores take what is rotated in 16 bits.
template <class T, class Rotation, Operand operand>
using RotationOf =
    std::conditional_t<sizeof(Rotated<T, operand>) == 2, Rotation, Butterfly>;

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// silu(gate)·up, computed in fp32 and rounded once.
template <class T>
__device__ __forceinline__ Chunk<T> gated(const Chunk<T>& gate, const Chunk<T>& up) {
  float g[8], u[8];
  widen(gate, g);
  widen(up, u);
#pragma unroll
  for (int j = 0; j < 8; ++j) g[j] = silu(g[j]) * u[j];
  return narrowed<T>(g);
}

template <class T>
__device__ __forceinline__ float add_squares(const Chunk<T>& x, float sum) {
  float value[8];
  widen(x, value);
#pragma unroll
  for (int j = 0; j < 8; ++j) sum = fmaf(value[j], value[j], sum);
  return sum;
}

template <class T, class W, class R, class Rotation>
__device__ __forceinline__ void multiply_by(const Chunk<W>* weight, const Part<Rotation>& part,
                                            const Chunk<T> (&x)[kChunks],
                                            Chunk<R> (&product)[kChunks]) {
#pragma unroll
  for (int i = 0; i < kChunks; ++i)
    product[i] = product_of<R>(
        x[i], load_again(weight + part.position[0] + i * Rotation::kStep, part.inside[i]));
}

// Loads the thread's part of a row, and makes of it what is rotated: x, silu(gate)·up, or x·weight of
// x or of x + residual, which is stored as `hidden`. Returns RMSNorm's sum of squares. All loads of
// the row are issued before the first is used.
template <class T, class Rotation, Operand operand>
__device__ __forceinline__ float load_operand(const QuantizeArguments& a, int64_t row,
                                              const Part<Rotation>& part,
                                              Chunk<Rotated<T, operand>> (&rotated)[kChunks]) {
  constexpr bool two = operand == Operand::add_rmsnorm || operand == Operand::swiglu;
  constexpr int step = Rotation::kStep;
  const int chunks = a.width / 8;
  const int64_t start = row * chunks + part.position[0];
  const Chunk<T>* first =
      static_cast<const Chunk<T>*>(a.x) + (operand == Operand::swiglu ? start + row * chunks : start);
  const Chunk<T>* second = operand == Operand::swiglu
                               ? first + chunks
                               : static_cast<const Chunk<T>*>(a.residual) + start;
  Chunk<T> x[kChunks], other[two ? kChunks : 1];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    x[i] = load_chunk(first + i * step, part.inside[i]);
    if constexpr (two) other[i] = load_chunk(second + i * step, part.inside[i]);
  }
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if constexpr (operand == Operand::add_rmsnorm) {
      x[i] = sum_of(x[i], other[i]);
      if (a.hidden && part.inside[i])
        store_chunk(static_cast<Chunk<T>*>(a.hidden) + start + i * step, x[i]);
    }
    if constexpr (normalizes(operand))
      squares = add_squares(x[i], squares);
    else if constexpr (operand == Operand::swiglu)
      rotated[i] = gated(x[i], other[i]);
    else
      rotated[i] = x[i];
  }
  if constexpr (normalizes(operand)) {
    if (a.weight_is_float)
      multiply_by(static_cast<const Chunk<float>*>(a.weight), part, x, rotated);
    else
      multiply_by(static_cast<const Chunk<T>*>(a.weight), part, x, rotated);
  }
  return squares;
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

// The grid of a row before RMSNorm's `factor`, 1 without it.
struct RowGrid {
  float half_width, factor;
};

template <Operand operand>
__device__ __forceinline__ RowGrid grid_of(const QuantizeArguments& a, const float (&v)[kChunks][8],
                                           float operand_squares, float2* shared, int warp,
                                           int warps) {
  const float squares = squares_of(v);
  if constexpr (!normalizes(operand))
    return {half_width_of(a, row_sum(squares, reinterpret_cast<float*>(shared), warp, warps)), 1.f};
  const float2 sums = row_sum(make_float2(squares, operand_squares), shared, warp, warps);
  return {half_width_of(a, sums.x), rsqrtf(fmaf(sums.y, a.inverse_width, a.epsilon))};
}

// The block's rows have `warps` warps each.
template <Operand operand>
__device__ __forceinline__ RowGrid grid_of(const QuantizeArguments& a, const float (&v)[kChunks][8],
                                           float operand_squares, float2* shared, int warps) {
  const int warp = threadIdx.x >> 5, slot = warp / warps;
  return grid_of<operand>(a, v, operand_squares, shared + slot * warps, warp - slot * warps, warps);
}

}  // namespace questtrain
