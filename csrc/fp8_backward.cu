// Gradients and codes → FP8 (e4m3), laid out as the tensor cores take it: along what is summed.
//
// A tile's columns lie in shared memory as they are written: a word is 4 rows of a column. A lane has
// 4 rows of 8 or 16 columns, a warp 16 rows.
#include <cuda_fp8.h>
#include <tuple>

#include "launch.cuh"
#include "packed_codes.cuh"
#include "rows.cuh"
#include "stable.h"

namespace questtrain {
namespace {

// A prime: rows at even distances then meet every place of sequences whose length is a power of two.
constexpr int kFp8SampledRows = 127;

struct Fp8GradientsArguments {
  const void* grad;            // bf16 [rows, columns]
  const float* weight_scales;  // [columns]
  const float* x_scales;       // [rows]
  void* by_rows;               // e4m3 [rows, columns], of grad·weight_scales
  void* by_columns;            // e4m3 [columns, rows], of grad·x_scales
  float* unit_rows;            // [1], what a 1 of by_rows stands for
  float* unit_columns;         // [1]
  float4* sums;                // [kFp8SampledRows]: of a sampled row's squares, of scales
  int64_t rows;                // a multiple of 16
  int columns;                 // a multiple of 16
};

struct Fp8TransposeArguments {
  const void* codes;  // int8 [rows, columns], or packed
  void* transposed;   // e4m3 [columns, rows]
  int64_t rows;       // a multiple of 16
  int columns;        // a multiple of 16
  int bits;           // a code's: 8, or 1, 2, 4 of a packed one
  int levels;
};

constexpr int64_t kFp8MostRows = int64_t{65535} * 128;  // a grid's height, in tiles

constexpr int kThreads = 256;
constexpr int kTileRows = 16 * kThreads / 32;
constexpr int kPieces = kTileRows / 16;  // of a column, 16 bytes each

// In its column a piece lies where the column says: 8 lanes that write the same piece of their
// columns meet 8 places, and so do 8 lanes that read a column.
template <int lane_columns, int columns>
struct Columns {
  uint4 piece[columns][kPieces];

  static __device__ __forceinline__ int place(int column, int of) {
    return of ^ (column / lane_columns % kPieces);
  }

  __device__ __forceinline__ void put(int column, int row, uint32_t four_rows) {
    uint4& target = piece[column][place(column, row / 16)];
    reinterpret_cast<uint32_t*>(&target)[row / 4 % 4] = four_rows;
  }

  // To [width, rows].
  __device__ __forceinline__ void store(void* target, int64_t first_row, int first_column,
                                        int64_t rows, int width) {
    __syncthreads();
#pragma unroll
    for (int i = threadIdx.x; i < columns * kPieces; i += kThreads) {
      const int column = i / kPieces, of = i % kPieces;
      const int64_t row = first_row + 16 * of;
      if (first_column + column >= width || row >= rows) continue;
      uint8_t* place_of = static_cast<uint8_t*>(target) + (first_column + column) * rows + row;
      *reinterpret_cast<uint4*>(place_of) = piece[column][place(column, of)];
    }
  }
};

// ---- gradients

constexpr int kPatches = 2;  // a lane's, of 4 rows × 8 columns
constexpr int kGradColumns = 64 * kPatches;

__device__ __forceinline__ float2 widened(uint32_t two) {
  return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

// Rounded to nearest, at most ±448; what is not finite becomes NaN.
__device__ __forceinline__ uint32_t scaled_pair(float a, float b, float a_scale, float b_scale) {
  const float2 pair = make_float2(fmaf(a, a_scale, a * 0.f), fmaf(b, b_scale, b * 0.f));
  return __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ float4 warp_sum4(float4 v) {
  return make_float4(warp_sum(v.x), warp_sum(v.y), warp_sum(v.z), warp_sum(v.w));
}

__device__ __forceinline__ int64_t sampled_rows(int64_t rows) {
  return rows < kFp8SampledRows ? rows : kFp8SampledRows;
}

// A block a sampled row: the sum of its squares, and that of a share of either side's scales.
__global__ void __launch_bounds__(kThreads) sample_gradients(Fp8GradientsArguments a) {
  __shared__ float4 of_warp[kThreads / 32];
  wait_for_previous();
  allow_next();  // after waiting: when the next kernel starts, the gradient is complete
  float4 sum{};
  const int64_t sampled = sampled_rows(a.rows), block = blockIdx.x;
  if (block < sampled) {
    const int64_t first = block * a.rows / sampled * a.columns;
    const uint4* row = reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(a.grad) + first);
#pragma unroll 4
    for (int i = threadIdx.x; i < a.columns / 8; i += kThreads) {
      const uint4 words = row[i];
      for (uint32_t two : {words.x, words.y, words.z, words.w}) {
        const float2 v = widened(two);
        sum.x = fmaf(v.x, v.x, fmaf(v.y, v.y, sum.x));
      }
    }
  }
  const int64_t thread = block * kThreads + threadIdx.x, threads = kFp8SampledRows * kThreads;
  for (int64_t i = thread; i < a.columns; i += threads) sum.y += a.weight_scales[i];
  for (int64_t i = thread; i < a.rows; i += threads) sum.z += a.x_scales[i];
  sum = warp_sum4(sum);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x) return;
  for (int i = 1; i < kThreads / 32; ++i) add_to(sum, of_warp[i]);
  a.sums[block] = sum;
}

// The power of two that brings `size` to 1 … 2; 1 for what is zero or no number.
__device__ __forceinline__ float to_one(float size) {
  if (!(size > 0.f && size < __int_as_float(0x7f800000))) return 1.f;
  const int exponent = 254 - (__float_as_int(size) >> 23);
  return __int_as_float(min(max(exponent, 1), 253) << 23);  // its inverse is normal, too
}

// Of by_rows and by_columns, from the sample; a whole warp asks.
__device__ __forceinline__ float2 scale_factors(const Fp8GradientsArguments& a) {
  float4 sum{};
  for (int i = threadIdx.x % 32; i < kFp8SampledRows; i += 32) add_to(sum, a.sums[i]);
  sum = warp_sum4(sum);
  const float rms = sqrtf(sum.x / (static_cast<float>(sampled_rows(a.rows)) * a.columns));
  return make_float2(to_one(rms * (sum.y / a.columns)), to_one(rms * (sum.z / a.rows)));
}

template <int count>
__device__ __forceinline__ void load_scales(const float* source, float factor,
                                            float (&scales)[count]) {
#pragma unroll
  for (int i = 0; i < count; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(source + i);
    scales[i] = four.x * factor;
    scales[i + 1] = four.y * factor;
    scales[i + 2] = four.z * factor;
    scales[i + 3] = four.w * factor;
  }
}

// 4 rows × 8 columns: rows go to memory at once, columns into the tile.
__device__ __forceinline__ void quantize_patch(const uint4 (&grad)[4], const float (&row_scales)[8],
                                               const float (&column_scales)[4], uint8_t* by_rows,
                                               int64_t stride, Columns<8, kGradColumns>& tile,
                                               int column, int row) {
  uint32_t of_row[4][2]{};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    float2 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = widened(reinterpret_cast<const uint32_t*>(&grad[i])[k]);
      const uint32_t pair =
          scaled_pair(v[i].x, v[i].y, row_scales[2 * k], row_scales[2 * k + 1]);
      of_row[i][k / 2] |= pair << (16 * (k % 2));
    }
    const float(&s)[4] = column_scales;
    tile.put(column + 2 * k, row,
             scaled_pair(v[0].x, v[1].x, s[0], s[1]) | scaled_pair(v[2].x, v[3].x, s[2], s[3]) << 16);
    tile.put(column + 2 * k + 1, row,
             scaled_pair(v[0].y, v[1].y, s[0], s[1]) | scaled_pair(v[2].y, v[3].y, s[2], s[3]) << 16);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<uint2*>(by_rows + i * stride) = make_uint2(of_row[i][0], of_row[i][1]);
}

__global__ void __launch_bounds__(kThreads, 4) quantize_gradients(Fp8GradientsArguments a) {
  __shared__ Columns<8, kGradColumns> tile;
  __shared__ float2 shared_factors;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = blockIdx.y * kTileRows;
  const int first_column = blockIdx.x * kGradColumns;
  const int row_in_tile = 16 * warp + 4 * (lane / 8), column_in_tile = 8 * (lane % 8);
  const int row = first_row + row_in_tile;
  const auto inside = [&](int patch) {
    return row < a.rows && first_column + column_in_tile + 64 * patch < a.columns;
  };
  const int64_t start = int64_t(row) * a.columns + first_column + column_in_tile;
  allow_next();
  // Before waiting: this kernel starts only when the sample's blocks have the gradient.
  uint4 grad[kPatches][4];
#pragma unroll
  for (int p = 0; p < kPatches; ++p)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (inside(p)) {
        const int64_t at = start + int64_t(i) * a.columns + 64 * p;
        grad[p][i] =
            __ldcs(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(a.grad) + at));
      }
  wait_for_previous();
  if (warp == 0) {
    const float2 factors = scale_factors(a);
    shared_factors = factors;
    if (blockIdx.x + blockIdx.y == 0 && lane == 0) {
      *a.unit_rows = 1.f / factors.x;
      *a.unit_columns = 1.f / factors.y;
    }
  }
  __syncthreads();
  const float2 factors = shared_factors;
  float column_scales[4], row_scales[8];
  if (row < a.rows) load_scales(a.x_scales + row, factors.y, column_scales);
#pragma unroll
  for (int p = 0; p < kPatches; ++p) {
    if (!inside(p)) continue;
    const int column = column_in_tile + 64 * p;
    load_scales(a.weight_scales + first_column + column, factors.x, row_scales);
    quantize_patch(grad[p], row_scales, column_scales,
                   static_cast<uint8_t*>(a.by_rows) + start + 64 * p, a.columns, tile, column,
                   row_in_tile);
  }
  tile.store(a.by_columns, first_row, first_column, a.rows, a.columns);
}

// ---- codes

constexpr int kCodeColumns = 128;

// A lane's 16 codes of a row.
template <int bits>
struct SixteenCodes {
  uint32_t words[bits == 8 ? 4 : 2];

  __device__ __forceinline__ void load(const void* codes, int64_t sixteen) {
    if constexpr (bits == 8)
      load_words<4>(static_cast<const uint4*>(codes) + sixteen, words);
    else if constexpr (bits == 4)
      load_words<2>(static_cast<const uint2*>(codes) + sixteen, words);
    else if constexpr (bits == 2)
      words[0] = __ldcs(static_cast<const uint32_t*>(codes) + sixteen);
    else
      words[0] = __ldcs(static_cast<const uint16_t*>(codes) + sixteen);
  }

  // The i-th 4, a byte each.
  __device__ __forceinline__ uint32_t four(int i) const {
    if constexpr (bits == 8) {
      return words[i];
    } else {
      constexpr uint32_t code = (1 << bits) - 1, two = (1 << 2 * bits) - 1;
      uint32_t spread = words[4 * bits * i / 32] >> (4 * bits * i % 32) & (two << 2 * bits | two);
      spread = (spread | spread << (16 - 2 * bits)) & (two << 16 | two);
      return (spread | spread << (8 - bits)) & (code * 0x01010101u);
    }
  }
};

// 4 integers, from a code a byte. Beside the byte 0x64 a byte b is 1024 + b in fp16.
template <int bits>
__device__ __forceinline__ uint32_t to_e4m3(uint32_t codes, int levels) {
  if constexpr (bits == 8) codes ^= 0x80808080u;
  uint32_t result = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t lifted = __byte_perm(codes, 0x64646464u, half ? 0x4342 : 0x4140);
    const __half2 base = __float2half2_rn(bits == 8 ? 1152.f : 1024.f);
    __half2 pair = __hsub2(reinterpret_cast<const __half2&>(lifted), base);
    if constexpr (bits < 8)
      pair = __hfma2(pair, __float2half2_rn(2.f), __half2half2(__int2half_rn(1 - levels)));
    const uint32_t two = __nv_cvt_halfraw2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
    result |= two << (16 * half);
  }
  return result;
}

template <int bits>
__global__ void __launch_bounds__(kThreads, 6) transpose_codes(Fp8TransposeArguments a) {
  __shared__ Columns<16, kCodeColumns> tile;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTileRows;
  const int first_column = blockIdx.x * kCodeColumns;
  const int row_in_tile = 16 * warp + 4 * (lane / 8), column_in_tile = 16 * (lane % 8);
  const int64_t row = first_row + row_in_tile;
  const int column = first_column + column_in_tile;
  allow_next();
  wait_for_previous();
  if (row < a.rows && column < a.columns) {
    SixteenCodes<bits> codes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i].load(a.codes, ((row + i) * a.columns + column) / 16);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t of_row[4], of_column[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) of_row[i] = to_e4m3<bits>(codes[i].four(k), a.levels);
      transpose_bytes(of_row[0], of_row[1], of_row[2], of_row[3], of_column);
#pragma unroll
      for (int j = 0; j < 4; ++j) tile.put(column_in_tile + 4 * k + j, row_in_tile, of_column[j]);
    }
  }
  tile.store(a.transposed, first_row, first_column, a.rows, a.columns);
}

// At least one, which says what a 1 stands for.
dim3 tiles(int64_t rows, int columns, int tile_columns) {
  return dim3((columns + tile_columns - 1) / tile_columns,
              static_cast<unsigned>(std::max<int64_t>((rows + kTileRows - 1) / kTileRows, 1)));
}

cudaError_t fp8_gradients(const Fp8GradientsArguments& a, cudaStream_t stream) {
  const cudaError_t error = launch_dependent(sample_gradients, dim3(kFp8SampledRows),
                                             dim3(kThreads), 0, stream, a);
  if (error != cudaSuccess) return error;
  return launch_dependent(quantize_gradients, tiles(a.rows, a.columns, kGradColumns),
                          dim3(kThreads), 0, stream, a);
}

cudaError_t fp8_transpose(const Fp8TransposeArguments& a, cudaStream_t stream) {
  const dim3 grid = tiles(a.rows, a.columns, kCodeColumns), block(kThreads);
  switch (a.bits) {
    case 1: return launch_dependent(transpose_codes<1>, grid, block, 0, stream, a);
    case 2: return launch_dependent(transpose_codes<2>, grid, block, 0, stream, a);
    case 4: return launch_dependent(transpose_codes<4>, grid, block, 0, stream, a);
    default: return launch_dependent(transpose_codes<8>, grid, block, 0, stream, a);
  }
}

// ---- the op

// What torch._scaled_mm takes.
void check_sizes(const Check& check, int64_t rows, int64_t columns) {
  if (rows % 16) check.fail("the number of rows ", rows, " must be a multiple of 16");
  check.multiple("the width", columns, 16);
  if (rows > kFp8MostRows) check.fail(rows, " rows exceed ", kFp8MostRows);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gradients(Tensor grad, Tensor weight_scales,
                                                     Tensor x_scales) {
  const Check check("fp8_gradients", grad);
  Fp8GradientsArguments arguments{};
  arguments.grad = check.matrix("grad", grad, kAny, kAny, {ScalarType::BFloat16});
  const int64_t rows = grad.size(0), columns = grad.size(1);
  check_sizes(check, rows, columns);
  arguments.weight_scales = check.vector<float>("weight_scales", weight_scales, columns);
  arguments.x_scales = check.vector<float>("x_scales", x_scales, rows);
  using torch::stable::new_empty;
  Tensor by_rows = new_empty(grad, {rows, columns}, ScalarType::Float8_e4m3fn);
  Tensor by_columns = new_empty(grad, {columns, rows}, ScalarType::Float8_e4m3fn);
  Tensor unit_rows = new_empty(grad, {1}, ScalarType::Float);
  Tensor unit_columns = new_empty(grad, {1}, ScalarType::Float);
  Tensor sums = new_empty(grad, {kFp8SampledRows, 4}, ScalarType::Float);

  arguments.by_rows = by_rows.data_ptr();
  arguments.by_columns = by_columns.data_ptr();
  arguments.unit_rows = static_cast<float*>(unit_rows.data_ptr());
  arguments.unit_columns = static_cast<float*>(unit_columns.data_ptr());
  arguments.sums = static_cast<float4*>(sums.data_ptr());
  arguments.rows = rows;
  arguments.columns = static_cast<int>(columns);
  launch_op(check, fp8_gradients, arguments);
  return {by_rows, by_columns, unit_rows, unit_columns};
}

Tensor transpose(Tensor codes, int64_t levels) {
  const Check check("fp8_transpose", codes);
  Fp8TransposeArguments arguments{};
  arguments.codes = check.matrix("codes", codes, kAny, kAny, {ScalarType::Char, ScalarType::Byte});
  const int bits = check.packed_levels("levels", levels);  // int8 codes too are exact in e4m3
  const bool packed = codes.scalar_type() == ScalarType::Byte;
  const int64_t rows = codes.size(0), columns = packed ? codes.size(1) * 8 / bits : codes.size(1);
  check_sizes(check, rows, columns);
  Tensor transposed = torch::stable::new_empty(codes, {columns, rows}, ScalarType::Float8_e4m3fn);
  arguments.transposed = transposed.data_ptr();
  arguments.rows = rows;
  arguments.columns = static_cast<int>(columns);
  arguments.bits = packed ? bits : 8;
  arguments.levels = static_cast<int>(levels);
  if (rows) launch_op(check, fp8_transpose, arguments);
  return transposed;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("fp8_gradients", TORCH_BOX(&gradients));
  m.impl("fp8_transpose", TORCH_BOX(&transpose));
}

}  // namespace questtrain
