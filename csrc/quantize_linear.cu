// The fused form, for up to 8 rows: x is quantized by the kernel that multiplies, which saves a kernel
// and its latency where there is little else to do.
//
// Blocks stay: each quantizes all of x into shared memory, sorted as the products want it, and walks
// over slabs of 16 weight rows. The warps of a block share a slab's width; each has several loads in
// flight, across slabs. Sums are integers, so warps may add them in any order. While the kernel
// before still runs, the first slabs are prefetched into L2: nothing read early is kept.
//
// An object for each BITS: 1 2 4
#include "packed_codes.cuh"
#include "quantize.cuh"

namespace questtrain {

constexpr int kMostResidentWarps = 16;
constexpr int kResidentRows = 8;
constexpr int kSlabRows = 16;
constexpr int kPrefetchedSlabs = 3;

// Rows of the sorted activations lie 16 bytes apart modulo 128: no bank conflicts.
__host__ __device__ constexpr int resident_stride(int width) { return width + 16; }

struct Activations {
  int8_t* codes;  // [rows][resident_stride(width)], in shared memory
  float* scales;
  int32_t* sums;
};

// From [rows, width] of 16-bit elements, rotated in blocks of 128.
template <int bits, class T, Operand operand>
struct FromElements {
  static __device__ __forceinline__ void fill(QuantizeArguments q, const Activations& x) {
    using Rotation = RotationOf<T, TensorCore, operand>;
    __shared__ float2 squares_of_row[kMostResidentWarps];
    const int warps = (q.width + kWarpElements - 1) / kWarpElements;
    const int rows_at_once = blockDim.x / 32 / warps, group = (threadIdx.x >> 5) / warps;
    if (blockIdx.x != 0) q.hidden = nullptr;  // one block writes the residual sum
    for (int first = 0; first < q.rows; first += rows_at_once) {
      const int row = first + group;
      const bool exists = group < rows_at_once && row < q.rows;
      Part<Rotation> part(warps, q.width / 8);
      if (!exists)
#pragma unroll
        for (int i = 0; i < kChunks; ++i) part.inside[i] = false;
      Chunk<Rotated<T, operand>> chunks[kChunks];
      const float squares = load_operand<T, Rotation, operand>(q, row, part, chunks);
      float v[kChunks][8];
      Rotation::apply(chunks, v, 128, part.lane);
      const RowGrid grid = grid_of<operand>(q, v, squares, squares_of_row, warps);
      const float inverse = __fdividef(0.5f * q.orthonormal, grid.half_width);
      int32_t sum = 0;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        if (!part.inside[i]) continue;
        const uint2 codes = integer_codes(level_indices(v[i], inverse, q.steps), q.levels);
        sum = add_codes(codes, sum);
        reinterpret_cast<uint2*>(x.codes + row * resident_stride(q.width))[part.position[i]] =
            Codes<bits>::sort_chunk(codes);
      }
      sum = warp_sum(sum);
      if (exists && part.lane == 0) atomicAdd(&x.sums[row], sum);
      if (exists && part.warp == 0 && part.lane == 0)
        x.scales[row] = grid.half_width * grid.factor * q.inverse_steps;
    }
  }
};

// What a chunk of 8 codes could not sort by itself.
template <int bits>
__device__ __forceinline__ void sort_in_place(const PackedLinearArguments& a, int8_t* codes) {
  const int groups = a.width / kLaneCodes;
  for (int i = threadIdx.x; i < groups * a.rows; i += blockDim.x) {
    uint4* group = reinterpret_cast<uint4*>(codes + i / groups * resident_stride(a.width) +
                                            i % groups * kLaneCodes);
    alignas(16) uint32_t raw[8], sorted[8];
    *reinterpret_cast<uint4*>(raw) = group[0];
    *reinterpret_cast<uint4*>(raw + 4) = group[1];
    Codes<bits>::sort(raw, sorted);
    group[0] = *reinterpret_cast<uint4*>(sorted);
    group[1] = *reinterpret_cast<uint4*>(sorted + 4);
  }
}

// Where a warp's loads go: its steps of one slab, then those of the block's next slab.
template <int words, int warps>
struct Cursor {
  static constexpr int kStepBytes = 4 * 4 * words;  // of a row, by its 4 lanes
  const uint8_t* row;                               // the lane's upper row of the slab
  int64_t row_bytes;
  int slab, slabs, step, steps;

  __device__ __forceinline__ Cursor(const PackedLinearArguments& a, int64_t bytes)
      : row_bytes(bytes),
        slab(blockIdx.x),
        slabs(a.columns / kSlabRows),
        step(threadIdx.x >> 5),
        steps(int(bytes) / kStepBytes) {
    const int lane = threadIdx.x & 31;
    row = a.weight + (int64_t(slab) * kSlabRows + (lane >> 2)) * row_bytes + (lane & 3) * 4 * words;
  }

  // The lane's words of both its rows; then on to the next step. A warp whose steps end before the
  // others' waits at the slab's end like them.
  __device__ __forceinline__ void load(uint32_t (&target)[2][words], int steps_of_slab) {
    if (slab < slabs && step < steps) {
      const uint8_t* source = row + step * kStepBytes;
      load_words<words>(source, target[0]);
      load_words<words>(source + 8 * row_bytes, target[1]);
    }
    step += warps;
    if (step >= steps_of_slab) {
      step = threadIdx.x >> 5;
      slab += gridDim.x;
      row += int64_t(gridDim.x) * kSlabRows * row_bytes;
    }
  }
};

template <int bits, int pieces, int warps, class Source>
__global__ void __launch_bounds__(32 * warps, kMostResidentWarps / warps)
    packed_resident_kernel(PackedLinearArguments a, QuantizeArguments q) {
  constexpr int kWords = pieces * bits;  // a lane's load, in 4 bytes
  constexpr int kAhead = kWords == 4 ? 4 : 8;
  extern __shared__ uint4 shared[];
  __shared__ int32_t totals[2][kResidentRows][kSlabRows];
  __shared__ float x_scales[kResidentRows];
  __shared__ int32_t x_sums[kResidentRows];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int64_t row_bytes = int64_t(a.width) * bits / 8;
  const Activations x{reinterpret_cast<int8_t*>(shared), x_scales, x_sums};
  Cursor<kWords, warps> cursor(a, row_bytes);
  const int rounds = (cursor.steps + warps - 1) / warps;
  const int steps_of_slab = rounds * warps, steps = cursor.steps;
  allow_next();
  if (threadIdx.x < kSlabRows * kPrefetchedSlabs) {
    const int slab = blockIdx.x + threadIdx.x / kSlabRows * gridDim.x;
    if (slab < cursor.slabs)
      prefetch_to_l2(a.weight + (int64_t(slab) * kSlabRows + threadIdx.x % kSlabRows) * row_bytes,
                     static_cast<uint32_t>(row_bytes));
  }
  for (int i = threadIdx.x; i < 2 * kResidentRows * kSlabRows; i += blockDim.x)
    (&totals[0][0][0])[i] = 0;
  if (threadIdx.x < kResidentRows) x_sums[threadIdx.x] = 0;
  wait_for_previous();

  uint32_t packed[kAhead][2][kWords];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) cursor.load(packed[i], steps_of_slab);
  Source::fill(q, x);
  __syncthreads();
  if constexpr (!Codes<bits>::kChunksSuffice) {
    sort_in_place<bits>(a, x.codes);
    __syncthreads();
  }

  // Two sums: a product need not wait for the one before.
  int32_t sums[2][4] = {};
  const bool has_row = g < a.rows;
  const int8_t* codes_of_lane = x.codes + g * resident_stride(a.width) + t * pieces * kLaneCodes;
  auto multiply = [&](int step, const uint32_t(&words)[2][kWords]) {
#pragma unroll
    for (int p = 0; p < pieces; ++p) {
      uint32_t upper[8], lower[8];
      alignas(16) uint32_t sorted[8] = {};
      Codes<bits>::split(&words[0][p * bits], upper);
      Codes<bits>::split(&words[1][p * bits], lower);
      if (has_row) {
        const uint4* source = reinterpret_cast<const uint4*>(
            codes_of_lane + (step * 4 * pieces + p) * kLaneCodes);
        *reinterpret_cast<uint4*>(sorted) = source[0];
        *reinterpret_cast<uint4*>(sorted + 4) = source[1];
      }
#pragma unroll
      for (int k = 0; k < 8; k += 2)
        multiply_add(sums[k / 2 % 2], upper[k], lower[k], upper[k + 1], lower[k + 1], sorted[k],
                     sorted[k + 1]);
    }
  };
  const int out_row = threadIdx.x / kSlabRows, out_column = threadIdx.x % kSlabRows;
  const bool writes = out_row < a.rows;
  float weight_scale = writes ? a.weight_scales[blockIdx.x * kSlabRows + out_column] : 0.f;
  // Between two uses of one buffer lies a barrier, and its readers clear it before that.
  auto finish_slab = [&](int slab, int32_t(&total)[kResidentRows][kSlabRows]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 2 * t + i % 2;
      if (row < a.rows) atomicAdd(&total[row][8 * (i / 2) + g], sums[0][i] + sums[1][i]);
      sums[0][i] = sums[1][i] = 0;
    }
    __syncthreads();
    if (writes) {
      const int column = slab * kSlabRows + out_column;
      store_value(a, out_row, column, total[out_row][out_column], x_scales[out_row],
                  x_sums[out_row], weight_scale);
      total[out_row][out_column] = 0;
      const int next = column + gridDim.x * kSlabRows;
      if (next < a.columns) weight_scale = a.weight_scales[next];
    }
  };

  int slab = blockIdx.x, step = warp, buffer = 0;
  while (slab < cursor.slabs) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (slab >= cursor.slabs) break;
      if (step < steps) multiply(step, packed[i]);
      cursor.load(packed[i], steps_of_slab);
      step += warps;
      if (step >= steps_of_slab) {
        finish_slab(slab, totals[buffer]);
        step = warp;
        slab += gridDim.x;
        buffer ^= 1;
      }
    }
  }
}

template <int bits>
constexpr int resident_pieces() {
  return bits == 1 ? 2 : 1;
}

inline int resident_bytes(const PackedLinearArguments& a) {
  return a.rows * resident_stride(a.width);
}

template <int bits, int warps, class Source>
cudaError_t launch_warps(const PackedLinearArguments& a, const QuantizeArguments& q,
                         cudaStream_t stream) {
  const auto kernel = packed_resident_kernel<bits, resident_pieces<bits>(), warps, Source>;
  const int bytes = resident_bytes(a), slabs = a.columns / kSlabRows;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int blocks =
      kMostResidentWarps / warps * device_attribute(cudaDevAttrMultiProcessorCount);
  return launch_dependent(kernel, dim3(slabs < blocks ? slabs : blocks), dim3(32 * warps), bytes,
                          stream, a, q);
}

// Two blocks an SM, one working while the other waits, where 8 warps hold a row.
template <int bits, class Source>
cudaError_t launch_resident(const PackedLinearArguments& a, const QuantizeArguments& q,
                            cudaStream_t stream) {
  return a.width <= 8 * kWarpElements ? launch_warps<bits, 8, Source>(a, q, stream)
                                      : launch_warps<bits, 16, Source>(a, q, stream);
}

template <int bits, class T>
cudaError_t launch_elements(Operand operand, const PackedLinearArguments& a,
                            const QuantizeArguments& q, cudaStream_t stream) {
  switch (operand) {
    case Operand::plain:
      return launch_resident<bits, FromElements<bits, T, Operand::plain>>(a, q, stream);
    case Operand::rmsnorm:
      return launch_resident<bits, FromElements<bits, T, Operand::rmsnorm>>(a, q, stream);
    case Operand::add_rmsnorm:
      return launch_resident<bits, FromElements<bits, T, Operand::add_rmsnorm>>(a, q, stream);
    default:
      return launch_resident<bits, FromElements<bits, T, Operand::swiglu>>(a, q, stream);
  }
}

template <int bits>
cudaError_t launch_quantize_linear(Operand operand, const PackedLinearArguments& a,
                                   const QuantizeArguments& q, cudaStream_t stream) {
  return a.output == Output::half ? launch_elements<bits, __half>(operand, a, q, stream)
                                  : launch_elements<bits, __nv_bfloat16>(operand, a, q, stream);
}

template cudaError_t launch_quantize_linear<BITS>(Operand, const PackedLinearArguments&,
                                                  const QuantizeArguments&, cudaStream_t);

}  // namespace questtrain
