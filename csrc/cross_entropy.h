// Cross-entropy of rows of logits, which become its gradient: what the binding hands to the kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "output.h"

namespace questtrain {

struct CrossEntropyArguments {
  void* logits;            // [rows, width], in 16-byte alignment; rows need none
  const int64_t* targets;  // [rows]
  float* losses;           // [rows]
  int64_t rows;
  int width;
  int64_t ignored;         // target of rows without loss and gradient
  Output dtype;            // of the logits
};

cudaError_t cross_entropy(const CrossEntropyArguments&, cudaStream_t);

}  // namespace questtrain
