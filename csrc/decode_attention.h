// Attention of one decoding step: what the binding hands to the kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "output.h"

namespace questtrain {

struct DecodeAttentionArguments {
  const void *q, *k, *v;                // [batch, heads · width], rows `…_stride` elements apart
  void *keys, *values;                  // [batch, heads, capacity, width]
  const int64_t* position;              // tokens cached: the new one's place
  const float *cos, *sin;               // [width]
  void* y;                              // [batch, heads · width]
  int64_t q_stride, k_stride, v_stride;
  int batch, heads, capacity, width;
  Output dtype;                         // of all operands and of y
};

// cudaErrorInvalidValue for a head width that it has not been compiled for.
cudaError_t decode_attention(const DecodeAttentionArguments&, cudaStream_t);

constexpr int64_t kLargestCapacity = int64_t(1) << 20;

constexpr bool is_head_width(int64_t width) {
  return width == 32 || width == 64 || width == 128 || width == 256;
}

}  // namespace questtrain
