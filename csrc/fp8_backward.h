// A backward in FP8 (e4m3): what the bindings hand to the kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace questtrain {

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

cudaError_t fp8_gradients(const Fp8GradientsArguments&, cudaStream_t);
cudaError_t fp8_transpose(const Fp8TransposeArguments&, cudaStream_t);

}  // namespace questtrain
