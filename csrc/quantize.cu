// The quantizers: rows in memory → codes, scales, sums and mask in memory.
//
// An object for each ELEMENT: __nv_bfloat16 __half float
#include "quantize.cuh"

namespace questtrain {

// As `integer_codes`, with factor 2 and its lift; of 256 levels, whose integers do not fit, with
// factor 1 and lift 0: q - 128.
__device__ __forceinline__ uint2 int8_codes(uint2 indices, const QuantizeArguments& a) {
  return make_uint2((indices.x * a.code_factor + a.code_lift) ^ 0x80808080u,
                    (indices.y * a.code_factor + a.code_lift) ^ 0x80808080u);
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

// Codes of 8 neighbours to their places in the order of tiles (see packed_tiles_sm90.cuh), which repeats
// after 4 runs of `run` chunks. A run is a lane's: its element 4·u·w + u·j + i, u = 8/bits, is byte
// 4·lane + j of the 16 of register u·w + i.
template <int bits>
__device__ __forceinline__ void store_for_tiles(void* codes, int64_t chunk, uint2 eight) {
  constexpr int run = bits == 4 ? 4 : 8, byte_codes = 8 / bits, word_chunks = byte_codes / 2;
  const int in_run = static_cast<int>(chunk % run), lane = static_cast<int>(chunk / run % 4);
  const int first = in_run % word_chunks * bits;  // j of the chunk's first code
  uint8_t* const to = static_cast<uint8_t*>(codes) + (chunk - chunk % (4 * run)) * 8 +
                      in_run / word_chunks * byte_codes * 16 + 4 * lane + first;
  if constexpr (bits == 4) {
    *reinterpret_cast<uint32_t*>(to) = __byte_perm(eight.x, eight.y, 0x6420);
    *reinterpret_cast<uint32_t*>(to + 16) = __byte_perm(eight.x, eight.y, 0x7531);
  } else if constexpr (bits == 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *reinterpret_cast<uint16_t*>(to + 16 * i) =
          static_cast<uint16_t>(__byte_perm(eight.x, eight.y, i | (4 + i) << 4));
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      to[16 * i] = static_cast<uint8_t>((i < 4 ? eight.x : eight.y) >> 8 * (i % 4));
  }
}

// What is not 8 int8 codes together.
__device__ __forceinline__ void store_packed(const QuantizeArguments& a, int64_t chunk,
                                             uint2 indices, uint2 codes) {
  switch (a.tile_bits) {
    case 4: return store_for_tiles<4>(a.codes, chunk, codes);
    case 2: return store_for_tiles<2>(a.codes, chunk, codes);
    case 1: return store_for_tiles<1>(a.codes, chunk, codes);
  }
  switch (a.container_bits) {
    case 4: static_cast<uint32_t*>(a.codes)[chunk] = close_up(indices, 4); break;
    case 2: static_cast<uint16_t*>(a.codes)[chunk] = close_up(indices, 2); break;
    default: static_cast<uint8_t*>(a.codes)[chunk] = close_up(indices, 1);
  }
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
      store_packed(a, start + i * Rotation::kStep, indices, codes);
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
  return a.container_bits == 8 && a.tile_bits == 0
             ? launch_dependent(quantize_rows<T, Rotation, operand, false>, grid, block, 0, stream,
                                a, warps)
             : launch_dependent(quantize_rows<T, Rotation, operand, true>, grid, block, 0, stream,
                                a, warps);
}

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

template cudaError_t launch_quantize<ELEMENT>(Operand, const QuantizeArguments&, cudaStream_t);

}  // namespace questtrain
