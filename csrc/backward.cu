// One kernel an operand: mask → Hadamard transform, which is its own inverse → [SwiGLU | RMSNorm]
// backward, one pass over memory; fp32 between, rounded once.
//
// A mask is applied to the bits as they are loaded, before the tensor cores take them. Without
// RMSNorm no sum runs over a row, and warps take 1,024 elements after another of the whole matrix.
//
// An object for each ELEMENT: __nv_bfloat16 __half float
#include "backward.h"
#include "launch.cuh"
#include "rows.cuh"

namespace questtrain {

// Of a vector that every row reads. Not as constant memory: the compiler would keep the values in
// registers from one use to the next.
template <class T>
__device__ __forceinline__ Chunk<T> load_cached(const Chunk<T>* source, bool inside) {
  Chunk<T> result;
#pragma unroll
  for (int i = 0; i < int(sizeof(Chunk<T>) / 16); ++i) {
    uint4 words{};
    if (inside)
      asm volatile("ld.global.ca.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                   : "l"(reinterpret_cast<const uint4*>(source) + i));
    reinterpret_cast<uint4*>(&result)[i] = words;
  }
  return result;
}

// ---- masks

// Bytes of ones where the bytes that `selector` names (8 + its number, a nibble each) are negative.
template <uint32_t selector>
__device__ __forceinline__ uint32_t ones_of_negative(uint32_t bytes) {
  uint32_t ones;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(ones) : "r"(bytes), "n"(selector));
  return ones;
}

// Zeroes the elements whose bit is not set. The product puts 4 bits into the signs of 4 bytes.
template <class T>
__device__ __forceinline__ void apply_mask(Chunk<T>& x, uint32_t bits) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t bytes = (bits >> (4 * half) & 15u) * 0x10204080u;
    uint32_t* words = reinterpret_cast<uint32_t*>(&x.element[4 * half]);
    if constexpr (sizeof(T) == 2) {
      words[0] &= ones_of_negative<0x9988>(bytes);
      words[1] &= ones_of_negative<0xbbaa>(bytes);
    } else {
      words[0] &= ones_of_negative<0x8888>(bytes);
      words[1] &= ones_of_negative<0x9999>(bytes);
      words[2] &= ones_of_negative<0xaaaa>(bytes);
      words[3] &= ones_of_negative<0xbbbb>(bytes);
    }
  }
}

// A thread's chunks of the gradient and their mask bits, on their way. A byte a chunk; of the tensor
// cores' the quad loads a word a lane, which is then transposed.
template <class T, class Rotation>
struct MaskedGrad {
  static constexpr bool in_words = std::is_same_v<Rotation, TensorCore>;
  Chunk<T> grad[kChunks];
  uint32_t bits[in_words ? 1 : kChunks];

  __device__ __forceinline__ void load(const BackwardArguments& a, int64_t start,
                                       const bool (&inside)[kChunks], int lane) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int64_t at = start + i * Rotation::kStep;
      grad[i] = load_chunk(static_cast<const Chunk<T>*>(a.grad) + at, inside[i]);
      if constexpr (!in_words) bits[i] = inside[i] && a.mask ? __ldcs(a.mask + at) : 0xffu;
    }
    if constexpr (in_words) {
      const void* words = a.mask + start + 3 * (lane & 3);
      bits[0] = inside[0] && a.mask ? __ldcs(static_cast<const uint32_t*>(words)) : 0xffffffffu;
    }
  }

  // Masked and transformed, not yet times block^-1/2.
  __device__ __forceinline__ void rotate(float (&v)[kChunks][8], int block, int lane) {
    if constexpr (in_words) bits[0] = transpose_in_quad(bits[0], lane);
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
      apply_mask(grad[i], in_words ? bits[0] >> (8 * i) : bits[i]);
    Rotation::apply(grad, v, block, lane);
  }
};

// ---- plain and SwiGLU: a thread's part of the matrix

template <class Rotation>
struct MatrixPart {
  int64_t start;  // its first chunk
  bool inside[kChunks];
  int lane;

  __device__ __forceinline__ explicit MatrixPart(int64_t chunks) : lane(threadIdx.x & 31) {
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + (threadIdx.x >> 5);
    start = warp * (kWarpElements / 8) + Rotation::position(0, lane, 0);
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
      inside[i] = start + Rotation::anchor(i) * Rotation::kStep < chunks;
  }
};

template <class T, class Rotation>
__global__ void __maxnreg__(56) plain_backward(BackwardArguments a) {
  const MatrixPart<Rotation> part(a.rows * (a.width / 8));
  allow_next();
  wait_for_previous();
  MaskedGrad<T, Rotation> masked;
  masked.load(a, part.start, part.inside, part.lane);
  float v[kChunks][8];
  masked.rotate(v, a.block, part.lane);
  Chunk<T>* result = static_cast<Chunk<T>*>(a.result) + part.start;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (!part.inside[i]) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) v[i][j] *= a.orthonormal;
    store_chunk(result + i * Rotation::kStep, narrowed<T>(v[i]));
  }
}

// The gradients of gate and up, in their place, from silu(gate)·up's.
template <class T>
__device__ __forceinline__ void swiglu_gradients(const float (&v)[8], float orthonormal,
                                                 Chunk<T>& gate, Chunk<T>& up) {
  float g[8], u[8];
  widen(gate, g);
  widen(up, u);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float s = sigmoid(g[j]), grad = v[j] * orthonormal * s;
    u[j] *= grad * fmaf(g[j], 1.f - s, 1.f);
    g[j] *= grad;
  }
  gate = narrowed<T>(u);
  up = narrowed<T>(g);
}

template <class T, class Rotation>
__global__ void __maxnreg__(sizeof(T) == 2 ? 96 : 128) swiglu_backward(BackwardArguments a) {
  const uint32_t row_chunks = a.width / 8;
  const MatrixPart<Rotation> part(a.rows * row_chunks);
  int64_t place[kChunks];  // of gate; up's is a row further
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int at = Rotation::anchor(i) * Rotation::kStep;
    const uint32_t row = static_cast<uint32_t>(part.start + at) / row_chunks;
    place[i] = part.start + static_cast<int64_t>(row) * row_chunks;
  }
  allow_next();
  wait_for_previous();
  MaskedGrad<T, Rotation> masked;
  masked.load(a, part.start, part.inside, part.lane);
  Chunk<T> gate[kChunks], up[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const Chunk<T>* source = static_cast<const Chunk<T>*>(a.x) + place[i] + i * Rotation::kStep;
    gate[i] = load_chunk(source, part.inside[i]);
    up[i] = load_chunk(source + row_chunks, part.inside[i]);
  }
  float v[kChunks][8];
  masked.rotate(v, a.block, part.lane);
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (!part.inside[i]) continue;
    swiglu_gradients(v[i], a.orthonormal, gate[i], up[i]);
    Chunk<T>* target = static_cast<Chunk<T>*>(a.result) + place[i] + i * Rotation::kStep;
    store_chunk(target, gate[i]);
    store_chunk(target + row_chunks, up[i]);
  }
}

// ---- RMSNorm

constexpr int kMostNormWarps = kLargestNormWidth / kWarpElements;

// Over a row's warps alone: other rows of the block go on. Uses of `shared` must alternate.
template <class Rotation>
__device__ __forceinline__ float2 slot_sum(float2 value, float2* shared,
                                           const Part<Rotation>& part) {
  value = warp_sum(value);
  if (part.warps == 1) return value;
  const int first = part.slot * part.warps;
  if (part.lane == 0) shared[first + part.warp] = value;
  asm volatile("bar.sync %0, %1;" ::"r"(part.slot + 1), "r"(32 * part.warps) : "memory");
  float2 total{};
  for (int i = 0; i < part.warps; ++i) add_to(total, shared[first + i]);
  return total;
}

// Adds 8 columns' grad·x to the thread's own place in shared memory: in registers, they would leave
// too few for the row.
__device__ __forceinline__ void add_products(float4* sums, int i, const float (&grad)[8],
                                             const float (&x)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float4& sum = sums[(2 * i + half) * blockDim.x + threadIdx.x];
    const int j = 4 * half;
    sum = make_float4(fmaf(grad[j], x[j], sum.x), fmaf(grad[j + 1], x[j + 1], sum.y),
                      fmaf(grad[j + 2], x[j + 2], sum.z), fmaf(grad[j + 3], x[j + 3], sum.w));
  }
}

// With r = 1/√(mean x² + ε) and g the gradient of x·r·weight:
// x's is r·(g·weight − x·r²·mean(g·weight·x)), the weight's the sum of g·x·r over the rows.
template <class T, class W, class Rotation>
__device__ __forceinline__ void norm_row(const BackwardArguments& a, int64_t row,
                                         const Part<Rotation>& part, float2* shared,
                                         float4* weight_grads) {
  constexpr int step = Rotation::kStep;
  const int64_t start = row * (a.width / 8) + part.position[0];
  const Chunk<W>* weight = static_cast<const Chunk<W>*>(a.weight) + part.position[0];
  MaskedGrad<T, Rotation> masked;
  masked.load(a, start, part.inside, part.lane);
  Chunk<T> x[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    x[i] = load_chunk(static_cast<const Chunk<T>*>(a.x) + start + i * step, part.inside[i]);
  }
  float v[kChunks][8];
  masked.rotate(v, a.block, part.lane);

  float2 sums{};  // of x² and v·weight·x
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    float value[8], w[8];
    widen(x[i], value);
    widen(load_cached(weight + i * step, part.inside[i]), w);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      sums.x = fmaf(value[j], value[j], sums.x);
      sums.y = fmaf(v[i][j] * w[j], value[j], sums.y);
    }
  }
  const auto load_residual = [&](int i) {
    return load_chunk(static_cast<const Chunk<T>*>(a.residual_grad) + start + i * step,
                       part.inside[i] && a.residual_grad);
  };
  constexpr bool together = sizeof(T) == 2;  // all loads before the first store; fp32 has no room
  Chunk<T> residual[kChunks];
#pragma unroll
  for (int i = 0; together && i < kChunks; ++i) residual[i] = load_residual(i);
  sums = slot_sum(sums, shared, part);
  const float inverse_rms = rsqrtf(fmaf(sums.x, a.inverse_width, a.epsilon));
  const float factor = inverse_rms * a.orthonormal;
  const float slope = factor * inverse_rms * (sums.y * inverse_rms * a.inverse_width);

#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (!part.inside[i]) continue;
    float value[8], w[8], result[8];
    widen(x[i], value);
    widen(load_cached(weight + i * step, true), w);
    widen(together ? residual[i] : load_residual(i), result);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      v[i][j] *= factor;
      result[j] = fmaf(v[i][j], w[j], fmaf(-slope, value[j], result[j]));
    }
    store_chunk(static_cast<Chunk<T>*>(a.result) + start + i * step, narrowed<T>(result));
    add_products(weight_grads, i, v[i], value);
  }
}

// The block's sums, over its slots: each thread adds what threads at its place in a row have.
template <class Rotation>
__device__ __forceinline__ void store_weight_grad(const BackwardArguments& a,
                                                  const float4* weight_grads) {
  const int threads = 32 * a.grid.warps, columns = a.width / 4;  // of a slot; of 4
  float4* of_block = reinterpret_cast<float4*>(a.weight_grads) + int64_t(blockIdx.x) * columns;
  __syncthreads();
  for (int piece = threadIdx.x; piece < 2 * kChunks * threads; piece += blockDim.x) {
    const int half = piece / threads, thread = piece % threads;
    const int column = 2 * Rotation::position(thread / 32, thread % 32, half / 2) + half % 2;
    if (column >= columns) continue;
    float4 sum{};
    for (int slot = 0; slot < a.grid.slots; ++slot)
      add_to(sum, weight_grads[half * blockDim.x + slot * threads + thread]);
    of_block[column] = sum;
  }
}

template <class T, class W, class Rotation>
__global__ void __maxnreg__(128) rmsnorm_backward(BackwardArguments a) {
  extern __shared__ float4 weight_grads[];  // [8 a thread][threads]
  __shared__ float2 sums_of_row[2][kMostNormWarps];
  const Part<Rotation> part(a.grid.warps, a.width / 8);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * a.grid.slots;
  for (int i = 0; i < 2 * kChunks; ++i) weight_grads[i * blockDim.x + threadIdx.x] = float4{};
  allow_next();
  wait_for_previous();

  int turn = 0;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * a.grid.slots + part.slot; row < a.rows;
       row += stride, turn ^= 1)
    norm_row<T, W>(a, row, part, sums_of_row[turn], weight_grads);
  store_weight_grad<Rotation>(a, weight_grads);
}

// ---- launching

template <class T, class W, class Rotation>
cudaError_t launch_norm(const BackwardArguments& a, cudaStream_t stream) {
  constexpr int of_warp = 32 * 2 * kChunks * sizeof(float4);
  const int warps = a.grid.warps * a.grid.slots;
  const cudaError_t error = cudaFuncSetAttribute(rmsnorm_backward<T, W, Rotation>,
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 kMostNormWarps * of_warp);
  if (error != cudaSuccess) return error;
  return launch_dependent(rmsnorm_backward<T, W, Rotation>, dim3(a.grid.blocks), dim3(32 * warps),
                          warps * of_warp, stream, a);
}

template <class T, class Rotation>
cudaError_t launch_origin(Origin origin, const BackwardArguments& a, cudaStream_t stream) {
  constexpr int warps = 4;
  const int64_t pieces = (a.rows * a.width + kWarpElements - 1) / kWarpElements;
  const dim3 grid(static_cast<unsigned>((pieces + warps - 1) / warps)), block(32 * warps);
  switch (origin) {
    case Origin::plain: return launch_dependent(plain_backward<T, Rotation>, grid, block, 0, stream, a);
    case Origin::swiglu: return launch_dependent(swiglu_backward<T, Rotation>, grid, block, 0, stream, a);
    default: return a.weight_is_float ? launch_norm<T, float, Rotation>(a, stream)
                                      : launch_norm<T, T, Rotation>(a, stream);
  }
}

// The tensor cores take 16-bit operands in blocks of 128.
template <class T>
cudaError_t launch_backward(Origin origin, const BackwardArguments& a, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2)
    if (a.block == 128) return launch_origin<T, TensorCore>(origin, a, stream);
  return launch_origin<T, Butterfly>(origin, a, stream);
}

template cudaError_t launch_backward<ELEMENT>(Origin, const BackwardArguments&, cudaStream_t);

}  // namespace questtrain
