// One kernel: [add +] [RMSNorm | SwiGLU] → Hadamard transform → row rms → codes, one pass over memory.
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

// The same with factor 2 and that lift; of 256 levels, whose integers do not fit, with 1 and 0: q - 128.
__device__ __forceinline__ uint2 int8_codes(uint2 indices, const QuantizeArguments& a) {
  return make_uint2((indices.x * a.code_factor + a.code_lift) ^ 0x80808080u,
                    (indices.y * a.code_factor + a.code_lift) ^ 0x80808080u);
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

// ---- masks

// What |v| must be below to be at most `limit`: the difference's sign bit then tells.
__device__ __forceinline__ float next_above(float limit) {
  return __uint_as_float(__float_as_uint(limit) + (limit < INFINITY));
}

// Puts the bits of 8 elements below those of `bits`. NaN is outside.
__device__ __forceinline__ uint32_t append_mask(uint32_t bits, const float (&v)[8], float beyond) {
#pragma unroll
  for (int j = 7; j >= 0; --j)
    bits = __funnelshift_l(__float_as_uint(fabsf(v[j]) - beyond), bits, 1);
  return bits;
}

template <class Rotation>
__device__ __forceinline__ void store_mask(uint8_t* mask, const Part<Rotation>& part,
                                           uint32_t bits) {
  if constexpr (std::is_same_v<Rotation, TensorCore>) {
    bits = transpose_in_quad(bits, part.lane);
    if (part.inside[0])
      reinterpret_cast<uint32_t*>(mask)[part.warp * 32 + part.lane] = bits;
  } else {
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
      if (part.inside[i]) mask[part.position[i]] = static_cast<uint8_t>(bits >> (8 * i));
  }
}

// The thread's codes into memory, with the mask or without. Returns their sum.
template <class Rotation, bool packed, bool masked>
__device__ __forceinline__ int32_t store_codes(const QuantizeArguments& a, int64_t row,
                                               const Part<Rotation>& part, float half_width,
                                               const float (&v)[kChunks][8]) {
  const float inverse = __fdividef(0.5f * a.orthonormal, half_width);
  const float beyond = masked ? next_above(a.trust * half_width / a.orthonormal) : 0.f;
  const int64_t first = row * (a.width / 8), start = first + part.position[0];
  int32_t sum = 0;
  uint32_t bits = 0;
#pragma unroll
  for (int i = kChunks - 1; i >= 0; --i) {
    if constexpr (masked) bits = append_mask(bits, v[i], beyond);
    if (!part.inside[i]) continue;
    const uint2 indices = level_indices(v[i], inverse, a.steps);
    const uint2 codes = int8_codes(indices, a);
    sum = add_codes(codes, sum);
    if constexpr (packed)
      store_packed(a, start + i * Rotation::kStep, indices);
    else
      (static_cast<uint2*>(a.codes) + start)[i * Rotation::kStep] = codes;
  }
  if constexpr (masked) store_mask(a.mask + first, part, bits);
  return sum;
}

// The sum that the first warp gets; the others need not wait for it to be read.
template <class Rotation>
__device__ __forceinline__ int32_t first_warps_sum(int32_t sum, int32_t* shared,
                                                   const Part<Rotation>& part) {
  sum = warp_sum(sum);
  if (part.warps == 1) return sum;
  if (part.lane == 0) shared[part.warp] = sum;
  __syncthreads();
  if (part.warp > 0) return 0;
  return warp_sum(part.lane < part.warps ? shared[part.lane] : 0);
}

// The thread's part of a rotated row → codes, scale, sum and mask in memory.
template <class Rotation, bool packed>
__device__ __forceinline__ void quantize_row(const QuantizeArguments& a, int64_t row, bool exists,
                                             const Part<Rotation>& part, const RowGrid& grid,
                                             const float (&v)[kChunks][8], int32_t* codes_of_row) {
  int32_t sum =
      a.mask ? store_codes<Rotation, packed, true>(a, row, part, grid.half_width, v)
             : store_codes<Rotation, packed, false>(a, row, part, grid.half_width, v);
  sum = first_warps_sum(sum, codes_of_row, part);
  if (part.warp == 0 && part.lane == 0 && exists) {
    a.scales[row] = grid.half_width * grid.factor * a.inverse_steps;
    a.sums[row] = sum;
  }
}

// Registers that keep most threads resident without spills that cost more.
constexpr int registers_for(Operand operand) { return operand == Operand::plain ? 56 : 64; }

template <class T, class Rotation, Operand operand, bool packed>
__global__ void __maxnreg__(registers_for(operand)) quantize_rows(QuantizeArguments a, int warps) {
  __shared__ float2 squares_of_row[32];
  __shared__ int32_t codes_of_row[32];
  Part<Rotation> part(warps, a.width / 8);
  const int rows_per_block = blockDim.x / 32 / warps;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * rows_per_block + part.slot;
  const bool exists = row < a.rows;
  if (!exists)
#pragma unroll
    for (int i = 0; i < kChunks; ++i) part.inside[i] = false;
  allow_next();
  wait_for_previous();

  Chunk<Rotated<T, operand>> x[kChunks];
  const float squares = load_operand<T, Rotation, operand>(a, row, part, x);
  float v[kChunks][8];
  Rotation::apply(x, v, a.block, part.lane);
  const RowGrid grid = grid_of<operand>(a, v, squares, squares_of_row + part.slot * warps,
                                        part.warp, warps);
  quantize_row<Rotation, packed>(a, row, exists, part, grid, v,
                                 codes_of_row + part.slot * warps);
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

// The tensor cores take what is rotated in 16 bits.
template <class T, class Rotation, Operand operand>
using RotationOf =
    std::conditional_t<sizeof(Rotated<T, operand>) == 2, Rotation, Butterfly>;

template <class T, class Rotation>
cudaError_t launch_operand(Operand operand, const QuantizeArguments& a, cudaStream_t stream) {
  switch (operand) {
    case Operand::plain: return launch_rows<T, RotationOf<T, Rotation, Operand::plain>, Operand::plain>(a, stream);
    case Operand::rmsnorm: return launch_rows<T, RotationOf<T, Rotation, Operand::rmsnorm>, Operand::rmsnorm>(a, stream);
    case Operand::add_rmsnorm: return launch_rows<T, RotationOf<T, Rotation, Operand::add_rmsnorm>, Operand::add_rmsnorm>(a, stream);
    default: return launch_rows<T, RotationOf<T, Rotation, Operand::swiglu>, Operand::swiglu>(a, stream);
  }
}

template <class T>
cudaError_t launch_quantize(Operand operand, const QuantizeArguments& a, cudaStream_t stream) {
  if (a.block == 128) return launch_operand<T, TensorCore>(operand, a, stream);
  return launch_operand<T, Butterfly>(operand, a, stream);
}

}  // namespace questtrain
