// AdamW on many weights at once: what the binding hands to the kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace questtrain {

struct AdamWTensor {
  float* weight;
  const float* grad;
  float* mean;    // of gradients
  float* square;  // the mean of their squares
  const float* step;
  int64_t size;
  unsigned first_block;  // of the launch
};

constexpr int kAdamWTensors = 64;  // of a launch: its arguments fit into 4 KB

struct AdamWArguments {
  AdamWTensor tensors[kAdamWTensors];
  int count;
  const float* divisor;  // of the gradients, or null
  double lr, beta1, beta2, eps, weight_decay;
};

// The blocks that a tensor of `size` elements takes.
unsigned adamw_blocks(int64_t size);

// Of `blocks` blocks, those of all tensors.
cudaError_t adamw(const AdamWArguments&, unsigned blocks, cudaStream_t);

}  // namespace questtrain
