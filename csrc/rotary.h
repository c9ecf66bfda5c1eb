// Rotary positions: what the binding hands to the kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "output.h"

namespace questtrain {

struct RotaryArguments {
  void* qkv;          // [tokens, 3, heads, width]
  const void* parts[3];  // Q, K, V: [tokens, heads, width]; null: Q and K are turned in place
  const float* cos;   // [length, width], halves repeated
  const float* sin;
  int64_t tokens;
  int length;  // a token's position is its number modulo this
  int heads, width;
};

// Of elements of `type`: Q and K of qkv in place, or turned back from the parts to qkv.
cudaError_t rotary(const RotaryArguments&, Output type, cudaStream_t);

}  // namespace questtrain
