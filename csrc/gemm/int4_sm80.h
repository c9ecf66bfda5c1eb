// y = x·wᵀ of matrices of 4-bit level indices, for sm_80, sm_86 and sm_89, which multiply 4-bit
// integers natively; later GPUs emulate it slowly.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../output.h"

namespace questtrain {

struct Int4Arguments {
  const void* x;               // [rows, width / 2] bytes
  const void* weight;          // [columns, width / 2] bytes
  const float* x_scales;       // [rows]
  const float* weight_scales;  // [columns]
  const int32_t* x_sums;       // [rows], of the integers 2q - 15
  const int32_t* weight_sums;  // [columns]
  void* y;                     // [rows, columns]
  int rows, columns, width;
};

cudaError_t int4_sm80(Output, const Int4Arguments&, cudaStream_t);

struct Int4SparseArguments {
  const uint8_t* x;            // [rows, width / 2]
  const uint8_t* weight;       // [columns, width / 4]: the kept indices
  const uint8_t* metadata;     // [columns, width / 16]: which pairs they are
  const float* x_scales;       // [rows]
  const float* weight_scales;  // [columns]
  void* y;                     // [rows, columns]
  Output output;
  int rows, columns, width;
};

cudaError_t int4_sparse_sm80(const Int4SparseArguments&, cudaStream_t);

}  // namespace questtrain
