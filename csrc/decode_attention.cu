// One decoding step's attention in one kernel: rotate q and k, append k and v, attend.
//
// A head's cached keys are shared out evenly among the blocks of a cluster (sm_90; one block a head
// elsewhere), from the position that the device holds, so that a CUDA graph can replay. In a block
// groups of lanes take keys in turn, a lane the same columns of all of them. Latency is the cost: a
// lane's next loads are under way before it uses the last ones. Groups, warps and blocks have each a
// softmax of their own, and these are joined: by shuffles, in shared memory, and in the first
// block's. The last block takes the new key and value from registers and writes them to the cache,
// where no block reads them; of heads that share keys and values, that of the first one writes.
#include "launch.cuh"
#include "softmax.cuh"
#include "stable.h"

namespace questtrain {
namespace {

struct DecodeAttentionArguments {
  const void *q, *k, *v;                // [batch, heads · width], rows `…_stride` elements apart
  void *keys, *values;                  // [batch, heads / shared_by, capacity, width]
  const int64_t* position;              // tokens cached: the new one's place
  const float *cos, *sin;               // [width]
  void* y;                              // [batch, heads · width]
  int64_t q_stride, k_stride, v_stride;
  int batch, heads, shared_by, capacity, width;  // heads of q, and how many share one of k and v
};

constexpr int64_t kLargestCapacity = int64_t(1) << 20;

constexpr bool is_head_width(int64_t width) {
  return width == 32 || width == 64 || width == 128 || width == 256;
}

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocksOfSM = 2;      // leaves the kernels before and after half an SM
constexpr int kSmallestSplit = 64;  // places of the cache worth a block
constexpr float kLog2E = 1.44269504f;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// How a row of `width` elements lies in a group of lanes: lane l has the vectors l, l + group, …
template <class T, int width>
struct Layout {
  static constexpr int kVector = 16 / sizeof(T);  // elements of one load
  static constexpr int kVectors = width / kVector;
  static constexpr int kGroup = kVectors < 32 ? kVectors : 32;
  static constexpr int kLoads = kVectors / kGroup, kColumns = kLoads * kVector;
  static constexpr int kAhead = 8 / kLoads;  // keys of a lane under way
  static constexpr int kGroups = kThreads / kGroup;
  static constexpr int kStep = kGroups * kAhead;  // keys of a block under way

  static __device__ __forceinline__ int column(int load) {
    return (load * kGroup + int(threadIdx.x) % kGroup) * kVector;
  }
  // Of the rotated pairs' other elements.
  static __device__ __forceinline__ int partner(int load) {
    return (column(load) + width / 2) % width;
  }
};

// Zeros where `exists` is false. Volatile: issued here, not where it is used.
__device__ __forceinline__ uint4 load_or_zero(const void* source, bool exists) {
  uint4 x;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %5, 0;\n"
      "mov.b32 %0, 0;\n"
      "mov.b32 %1, 0;\n"
      "mov.b32 %2, 0;\n"
      "mov.b32 %3, 0;\n"
      "@p ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}\n"
      : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w)
      : "l"(source), "r"(int(exists)));
  return x;
}

__device__ __forceinline__ int64_t load_position(const int64_t* position) {
  return *static_cast<const volatile int64_t*>(position);
}

template <class L, class T>
__device__ __forceinline__ void load_row(uint4 (&row)[L::kLoads], const T* source, bool exists) {
#pragma unroll
  for (int i = 0; i < L::kLoads; ++i) row[i] = load_or_zero(source + L::column(i), exists);
}

template <class L, class T>
__device__ __forceinline__ void store_row(T* target, const uint4 (&row)[L::kLoads]) {
#pragma unroll
  for (int i = 0; i < L::kLoads; ++i)
    __stcg(reinterpret_cast<uint4*>(target + L::column(i)), row[i]);
}

template <class L>
__device__ __forceinline__ void load_angles(const float* source, float (&angles)[L::kColumns]) {
#pragma unroll
  for (int i = 0; i < L::kColumns; i += 4)
    *reinterpret_cast<float4*>(&angles[i]) = *reinterpret_cast<const float4*>(
        source + L::column(i / L::kVector) + i % L::kVector);
}

// A row that is rotated: with every element its partner.
template <class L, class T, int width>
struct Pairs {
  uint4 row[L::kLoads], partners[L::kLoads];

  __device__ __forceinline__ void load(const T* source, bool exists) {
    load_row<L>(row, source, exists);
#pragma unroll
    for (int i = 0; i < L::kLoads; ++i) partners[i] = load_or_zero(source + L::partner(i), exists);
  }

  // Two products and their sum, each rounded, then rounded to T: bit for bit the reference.
  __device__ __forceinline__ void rotate(const float (&cos)[L::kColumns],
                                         const float (&sin)[L::kColumns]) {
    float x[L::kColumns], y[L::kColumns];
    widen_row<T>(row, x);
    widen_row<T>(partners, y);
    T* out = reinterpret_cast<T*>(row);
#pragma unroll
    for (int i = 0; i < L::kColumns; ++i) {
      const float partner = L::column(i / L::kVector) < width / 2 ? -y[i] : y[i];
      out[i] = static_cast<T>(__fadd_rn(__fmul_rn(x[i], cos[i]), __fmul_rn(partner, sin[i])));
    }
  }
};

template <class L, class T>
__device__ __forceinline__ float score_of(const float (&q)[L::kColumns],
                                          const uint4 (&key)[L::kLoads]) {
  float x[L::kColumns], sum = 0.f;
  widen_row<T>(key, x);
#pragma unroll
  for (int i = 0; i < L::kColumns; ++i) sum = fmaf(q[i], x[i], sum);
#pragma unroll
  for (int offset = L::kGroup / 2; offset; offset /= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, offset);
  return sum;
}

// A block's share of the cached keys.
struct Range {
  int begin, end;

  __device__ __forceinline__ Range(int64_t position, int capacity, int rank, int blocks) {
    const int cached = position >= 0 && position < capacity ? int(position) : 0;
    const int share = (cached + blocks - 1) / blocks;
    begin = min(rank * share, cached);
    end = min(begin + share, cached);
  }
};

// Into L2, which all that was written passes through: nothing read early is kept.
template <int width, class T>
__device__ __forceinline__ void prefetch(const T* cache, Range range) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr int kMost = 32768;  // of all blocks that a GPU holds this fits into L2
  const int bytes = min(int((range.end - range.begin) * width * sizeof(T)), kMost);
  if (bytes > 0)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(cache +
                                                                    int64_t(range.begin) * width),
                 "r"(bytes));
#endif
}

// The keys that a lane has under way, and their values.
template <class L, class T, int width>
struct Window {
  uint4 keys[L::kAhead][L::kLoads], values[L::kAhead][L::kLoads];

  static __device__ __forceinline__ int key(int first, int i) {
    return first + i * L::kGroups + int(threadIdx.x) / L::kGroup;
  }

  static __device__ __forceinline__ void load(uint4 (&rows)[L::kAhead][L::kLoads], const T* cache,
                                              int first, int end) {
#pragma unroll
    for (int i = 0; i < L::kAhead; ++i) {
      const int at = key(first, i);
      load_row<L>(rows[i], cache + int64_t(at) * width, at < end);
    }
  }

  __device__ __forceinline__ void load(const T* all_keys, const T* all_values, Range range) {
    load(keys, all_keys, range.begin, range.end);
    load(values, all_values, range.begin, range.end);
  }

  // All of `range`, of which the first have been loaded.
  __device__ __forceinline__ void attend(Softmax<L::kColumns>& softmax,
                                         const float (&q)[L::kColumns], const T* all_keys,
                                         const T* all_values, Range range) {
    for (int first = range.begin; first < range.end; first += L::kStep) {
      float scores[L::kAhead];
#pragma unroll
      for (int i = 0; i < L::kAhead; ++i) {
        const float score = score_of<L, T>(q, keys[i]);
        scores[i] = key(first, i) < range.end ? score : -kInfinity;
      }
      load(keys, all_keys, first + L::kStep, range.end);
      softmax.template add<T>(scores, values);
      load(values, all_values, first + L::kStep, range.end);
    }
  }
};

// The block's softmax in the first 4 columns a thread.
template <class L, int width>
__device__ __forceinline__ Softmax<4> join_block(Softmax<L::kColumns>& softmax) {
  __shared__ Parts<width, kWarps> warps;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  softmax.template join_groups<L::kGroup>();
  if (lane < L::kGroup)
#pragma unroll
    for (int i = 0; i < L::kColumns; i += 4)
      *reinterpret_cast<float4*>(&warps.values[warp][L::column(i / L::kVector) + i % L::kVector]) =
          *reinterpret_cast<const float4*>(&softmax.values[i]);
  if (lane == 0) warps.totals[warp] = make_float2(softmax.largest, softmax.sum);
  __syncthreads();
  Softmax<4> part;
  if (threadIdx.x < width / 4) part = warps.join(kWarps);
  return part;
}

template <class T, int width>
__global__ void __launch_bounds__(kThreads, kBlocksOfSM)
    decode_attention_kernel(DecodeAttentionArguments a) {
  using L = Layout<T, width>;
  __shared__ Blocks<width> blocks;
  const int splits = blocks.count(), rank = blocks.rank();
  const int row = int(blockIdx.x) / splits, batch = row / a.heads, head = row % a.heads;
  // Heads that share keys and values follow each other, and so do those of a batch's rows.
  const int64_t kv_row = row / a.shared_by;
  const bool writes = head % a.shared_by == 0;
  T* keys = static_cast<T*>(a.keys) + kv_row * a.capacity * width;
  T* values = static_cast<T*>(a.values) + kv_row * a.capacity * width;
  allow_next();
  blocks.begin();
  // Most often the position is long written: loads that believe the one read early start sooner.
  const int64_t believed = load_position(a.position);
  Range range(believed, a.capacity, rank, splits);
  if (threadIdx.x < 2) prefetch<width>(threadIdx.x ? values : keys, range);
  wait_for_previous();

  const int64_t position = load_position(a.position);
  const bool appends = rank == splits - 1 && threadIdx.x < 32;
  const int64_t column = int64_t(head) * width, kv_column = int64_t(head / a.shared_by) * width;
  Pairs<L, T, width> query, new_key;
  uint4 new_value[1][L::kLoads];
  Window<L, T, width> window;
  float cos[L::kColumns], sin[L::kColumns], q[L::kColumns];
  query.load(static_cast<const T*>(a.q) + batch * a.q_stride + column, true);
  new_key.load(static_cast<const T*>(a.k) + batch * a.k_stride + kv_column, appends);
  load_row<L>(new_value[0], static_cast<const T*>(a.v) + batch * a.v_stride + kv_column, appends);
  window.load(keys, values, range);
  load_angles<L>(a.cos, cos);
  load_angles<L>(a.sin, sin);
  if (position != believed) {
    range = Range(position, a.capacity, rank, splits);
    window.load(keys, values, range);
  }

  query.rotate(cos, sin);
  widen_row<T>(query.row, q);
#pragma unroll
  for (int i = 0; i < L::kColumns; ++i) q[i] *= kLog2E * rsqrtf(float(width));
  const bool fits = position >= 0 && position < a.capacity;
  Softmax<L::kColumns> softmax;
  if (appends) {
    new_key.rotate(cos, sin);
    const float score[1] = {score_of<L, T>(q, new_key.row)};
    if (threadIdx.x < L::kGroup && fits) {
      if (writes) {
        store_row<L>(keys + position * width, new_key.row);
        store_row<L>(values + position * width, new_value[0]);
      }
      softmax.template add<T>(score, new_value);
    }
  }
  window.attend(softmax, q, keys, values, range);

  blocks.send(join_block<L, width>(softmax));
  if (rank != 0 || threadIdx.x >= width / 4) return;
  blocks.wait();
  const Softmax<4> all = blocks.parts.join(splits);
  T* y = static_cast<T*>(a.y) + int64_t(row) * width + 4 * threadIdx.x;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    y[i] = static_cast<T>(fits ? __fdividef(all.values[i], all.sum) : kNaN);
}

// As many blocks a head as the cache is worth and the GPU has SMs for.
int choose_splits(const DecodeAttentionArguments& a) {
  const int64_t rows = int64_t(a.batch) * a.heads;
  const int64_t most = device_attribute(cudaDevAttrMultiProcessorCount);
  int splits = kMostSplits;
  while (splits > 1 && (rows * splits > most || a.capacity < splits * kSmallestSplit)) splits /= 2;
  return splits;
}

// Clusters need a GPU from sm_90 on, and code that was compiled for one: PTX of 80 knows none.
template <class T, int width>
cudaError_t launch(const DecodeAttentionArguments& a, cudaStream_t stream) {
  const auto kernel = decode_attention_kernel<T, width>;
  static const bool compiled_with_clusters = [kernel] {
    cudaFuncAttributes attributes{};
    return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90;
  }();
  const bool clusters =
      compiled_with_clusters && device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  const int splits = clusters ? choose_splits(a) : 1;
  const dim3 grid(static_cast<unsigned>(splits * a.batch * a.heads));
  return launch_clusters(kernel, splits, grid, dim3(kThreads), 0, stream, a);
}

template <class T>
cudaError_t launch_width(const DecodeAttentionArguments& a, cudaStream_t stream) {
  switch (a.width) {
    case 32: return launch<T, 32>(a, stream);
    case 64: return launch<T, 64>(a, stream);
    case 128: return launch<T, 128>(a, stream);
    case 256: return launch<T, 256>(a, stream);
    default: return cudaErrorInvalidValue;
  }
}

// ---- the op

bool is_aligned(int64_t bytes) { return bytes % 16 == 0; }

// q, k or v: rows of heads, which may lie apart; `like` is k for v, else itself.
const void* check_rows(const Check& check, const char* name, const Tensor& x, const Tensor& like,
                       const Tensor& q) {
  check.two_dimensional(name, x);
  if (x.size(0) != q.size(0) || x.size(1) != like.size(1))
    check.fail(name, " must be [", q.size(0), ", ", like.size(1), "], not ", shape_of(x));
  check.kind(name, x, {q.scalar_type()});
  if (x.size(1) > 1 && x.stride(1) != 1)
    check.fail(name, " must be contiguous in its last dimension");
  const int64_t bytes = x.scalar_type() == ScalarType::Float ? 4 : 2;
  if (!is_aligned(reinterpret_cast<intptr_t>(x.data_ptr())) ||
      (x.size(0) > 1 && !is_aligned(x.stride(0) * bytes)))
    check.fail(name, "'s rows must start at multiples of 16 bytes");
  return x.data_ptr();
}

void* check_cache(const Check& check, const char* name, const Tensor& cache, const Tensor& keys,
                  const Tensor& q, const Tensor& k) {
  if (cache.dim() != 4) check.fail(name, " must have 4 dimensions, not shape ", shape_of(cache));
  check.shaped_like(name, cache, keys);
  const int64_t heads = cache.size(1), capacity = cache.size(2), width = cache.size(3);
  if (cache.size(0) != q.size(0) || heads * width != k.size(1))
    check.fail(name, " must be [", q.size(0), ", heads, capacity, width] with heads·width ",
               k.size(1), ", not ", shape_of(cache));
  if (!capacity || !width || width % 2)
    check.fail(name, " must have places and an even width, not shape ", shape_of(cache));
  if (heads ? q.size(1) % (heads * width) : q.size(1))
    check.fail("q must be [", q.size(0), ", a multiple of ", heads, " heads of ", width,
               "], not ", shape_of(q));
  void* data = check.aligned(name, cache, {q.scalar_type()});
  if (!is_head_width(width))
    check.fail("the head width ", width, " must be one of 32, 64, 128, 256");
  if (capacity > kLargestCapacity)
    check.fail(name, " must have at most ", kLargestCapacity, " places, not ", capacity);
  return data;
}

Tensor attend(Tensor q, Tensor k, Tensor v, Tensor keys, Tensor values, Tensor position,
              Tensor cos, Tensor sin) {
  const Check check("decode_attention", q);
  check.two_dimensional("q", q);
  check.kind("q", q, kFloating);
  DecodeAttentionArguments a{};
  a.q = check_rows(check, "q", q, q, q);
  a.k = check_rows(check, "k", k, k, q);
  a.v = check_rows(check, "v", v, k, q);
  a.keys = check_cache(check, "keys", keys, keys, q, k);
  a.values = check_cache(check, "values", values, keys, q, k);
  a.position = check.scalar<int64_t>("position", position);
  a.cos = check.vector<float>("cos", cos, keys.size(3));
  a.sin = check.vector<float>("sin", sin, keys.size(3));
  Tensor y = torch::stable::new_empty(q, {q.size(0), q.size(1)});
  if (q.size(0) * q.size(1) == 0) return y;

  a.q_stride = q.stride(0), a.k_stride = k.stride(0), a.v_stride = v.stride(0);
  a.y = y.data_ptr();
  a.batch = static_cast<int>(keys.size(0));
  a.heads = static_cast<int>(q.size(1) / keys.size(3));
  a.shared_by = static_cast<int>(q.size(1) / k.size(1));
  a.capacity = static_cast<int>(keys.size(2));
  a.width = static_cast<int>(keys.size(3));
  const auto kernel = by_element(q.scalar_type(), launch_width<__nv_bfloat16>,
                                 launch_width<__half>, launch_width<float>);
  launch_op(check, kernel, a);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("decode_attention", TORCH_BOX(&attend));
}

}  // namespace questtrain
