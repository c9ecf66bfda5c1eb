// The backward of quantized operands: what the bindings hand to the kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace questtrain {

// What made the operand that was rotated and quantized.
enum class Origin { plain, rmsnorm, swiglu };

// RMSNorm's blocks stay and take row after row, `slots` of them at a time by `warps` warps each.
struct NormGrid {
  int warps, slots, blocks;
};

struct BackwardArguments {
  const void* grad;           // [rows, width], of the rotated values
  const uint8_t* mask;        // [rows, width/8], or null: all of it passes
  const void* x;              // rmsnorm: [rows, width]; swiglu: gate_up [rows, 2·width]
  const void* weight;         // [width], rmsnorm only
  bool weight_is_float;       // fp32, else x's dtype
  const void* residual_grad;  // [rows, width] or null, rmsnorm only
  void* result;               // [rows, width]; swiglu: [rows, 2·width]
  float* weight_grads;        // [grid.blocks, width], rmsnorm only: each block's sum
  NormGrid grid;              // rmsnorm only
  int64_t rows;
  int width;
  int block;            // Hadamard block, 1 for none
  float epsilon;        // RMSNorm's
  float inverse_width;  // 1/width
  float orthonormal;    // block^-1/2
};

constexpr int kLargestNormWidth = 16384;  // 16 warps of 128 registers a thread

// Of gradients of __nv_bfloat16, __half or float.
template <class Element>
cudaError_t launch_backward(Origin, const BackwardArguments&, cudaStream_t);

NormGrid norm_grid(int64_t rows, int width);

// [blocks, width] → [width]
cudaError_t sum_weight_grads(const float* weight_grads, float* sum, int blocks, int width,
                             cudaStream_t);

}  // namespace questtrain
