// y = x·wᵀ of 4-bit level indices with a 2:4 sparse weight.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../output.h"

namespace questtrain {

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
