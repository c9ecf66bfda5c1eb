// Rotary positions: what the binding hands to the kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "output.h"

namespace questtrain {

struct RotaryArguments {
  void* qkv;          // [tokens, 3, heads, width]
  void* parts[3];     // Q, K, V: [tokens, heads, width]
  const float* cos;   // [length, width], halves repeated
  const float* sin;
  int64_t tokens;
  int length;  // a token's position is its number modulo this
  int heads, width;
};

// Of elements of `type`: from qkv to the parts, or, where it `joins`, turned back from the parts to
// qkv.
cudaError_t rotary(const RotaryArguments&, bool joins, Output type, cudaStream_t);

}  // namespace questtrain
