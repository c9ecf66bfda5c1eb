// One decoding step's attention in one kernel: rotate q and k, append k and v, attend.
//
// A head's cached keys are shared out evenly among the blocks of a cluster (sm_90; one block a head
// elsewhere), from the position that the device holds, so that a CUDA graph can replay. In a block
// groups of lanes take keys in turn, a lane the same columns of all of them. Latency is the cost: a
// lane's next loads are under way before it uses the last ones. Groups, warps and blocks have each a
// softmax of their own, and these are joined: by shuffles, in shared memory, and in the first
// block's. The last block takes the new key and value from registers and writes them to the cache,
// where no block reads them; of heads that share keys and values, that of the first one writes.
//
// Where each sequence has a position of its own, how many shares its keys make follows from that
// alone, and a block takes several in turn, the last first, where there are fewer blocks: each share
// has the same softmax, and all are joined in the same order, whatever else is in the batch.
#include "decode_attention.cuh"
#include "stable.h"

namespace questtrain {
namespace {

struct DecodeAttentionArguments {
  const void *q, *k, *v;                // [batch, heads · width], rows `…_stride` elements apart
  void *keys, *values;                  // [batch, heads / shared_by, capacity, width]
  const int64_t* position;              // tokens cached: the new one's place; one, or [batch]
  const float *cos, *sin;               // [width], or [batch, width]
  void* y;                              // [batch, heads · width]
  int64_t q_stride, k_stride, v_stride;
  int batch, heads, shared_by, capacity, width;  // heads of q, and how many share one of k and v
  bool each;                                     // whether every sequence has its own position
};

constexpr int64_t kLargestCapacity = int64_t(1) << 20;

constexpr bool is_head_width(int64_t width) {
  return width == 32 || width == 64 || width == 128 || width == 256;
}

template <class T, int width, bool each>
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
  if (each) a.position += batch, a.cos += batch * width, a.sin += batch * width;
  allow_next();
  if (each)
    blocks.begin_unarmed();
  else
    blocks.begin();
  // Most often the position is long written: loads that believe the one read early start sooner.
  const int64_t believed = load_position(a.position);
  Shares<each> shares(believed, a.capacity, splits);
  int share = shares.last(rank, splits);
  Range range = shares.range(share);
  if (threadIdx.x < 2) prefetch<width>(threadIdx.x ? values : keys, range);
  wait_for_previous();

  const int64_t position = load_position(a.position);
  // Any block may turn out to have the last share of a sequence's own.
  const bool may_append = (each || rank == splits - 1) && threadIdx.x < 32;
  const int64_t column = int64_t(head) * width, kv_column = int64_t(head / a.shared_by) * width;
  Pairs<L, T, width> query, new_key;
  uint4 new_value[1][L::kLoads];
  Window<L, T, width> window;
  float cos[L::kColumns], sin[L::kColumns], q[L::kColumns];
  query.load(static_cast<const T*>(a.q) + batch * a.q_stride + column, true);
  new_key.load(static_cast<const T*>(a.k) + batch * a.k_stride + kv_column, may_append);
  load_row<L>(new_value[0], static_cast<const T*>(a.v) + batch * a.v_stride + kv_column,
              may_append);
  window.load(keys, values, range);
  load_angles<L>(a.cos, cos);
  load_angles<L>(a.sin, sin);
  if (position != believed) {
    shares = Shares<each>(position, a.capacity, splits);
    share = shares.last(rank, splits);
    range = shares.range(share);
    window.load(keys, values, range);
  }

  query.rotate(cos, sin);
  widen_row<T>(query.row, q);
#pragma unroll
  for (int i = 0; i < L::kColumns; ++i) q[i] *= kLog2E * rsqrtf(float(width));
  const bool fits = position >= 0 && position < a.capacity;
  Softmax<L::kColumns> softmax;
  if (may_append && (!each || share == shares.count - 1)) {
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
  if constexpr (each) {
    blocks.arm(shares.count);
    blocks.meet();
    for (; share >= 0; share -= splits) {
      const Range next = shares.range(share - splits);  // none is empty
      window.attend(softmax, q, keys, values, range, next);
      blocks.put(join_block<L, width>(softmax), share);
      if (share < splits) break;
      softmax = {};
      range = next;
      __syncthreads();  // the warps' softmaxes have been joined
    }
  } else {
    window.attend(softmax, q, keys, values, range, {0, 0});
    blocks.send(join_block<L, width>(softmax));
  }
  if (rank != 0 || threadIdx.x >= width / 4) return;
  blocks.wait();
  const Softmax<4> all = blocks.parts.join(shares.count);
  T* y = static_cast<T*>(a.y) + int64_t(row) * width + 4 * threadIdx.x;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    y[i] = static_cast<T>(fits ? __fdividef(all.values[i], all.sum) : kNaN);
}

constexpr int kSmallestSplit = 64;  // places of the cache worth a block, where all have a position

// As many blocks a head as the cache is worth and the GPU has SMs for.
int choose_splits(const DecodeAttentionArguments& a) {
  const int64_t rows = int64_t(a.batch) * a.heads;
  const int64_t most = device_attribute(cudaDevAttrMultiProcessorCount);
  const int smallest = a.each ? kSmallestShare : kSmallestSplit;
  int splits = kMostSplits;
  while (splits > 1 && (rows * splits > most || a.capacity < splits * smallest)) splits /= 2;
  return splits;
}

// Clusters need a GPU from sm_90 on, and code that was compiled for one: PTX of 80 knows none.
template <class T, int width, bool each>
cudaError_t launch(const DecodeAttentionArguments& a, cudaStream_t stream) {
  const auto kernel = decode_attention_kernel<T, width, each>;
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

template <class T, bool each>
cudaError_t launch_width(const DecodeAttentionArguments& a, cudaStream_t stream) {
  switch (a.width) {
    case 32: return launch<T, 32, each>(a, stream);
    case 64: return launch<T, 64, each>(a, stream);
    case 128: return launch<T, 128, each>(a, stream);
    case 256: return launch<T, 256, each>(a, stream);
    default: return cudaErrorInvalidValue;
  }
}

template <class T>
cudaError_t launch_any(const DecodeAttentionArguments& a, cudaStream_t stream) {
  return a.each ? launch_width<T, true>(a, stream) : launch_width<T, false>(a, stream);
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

const int64_t* check_position(const Check& check, const Tensor& position, int64_t batch) {
  if (position.dim() != 0 && (position.dim() != 1 || position.size(0) != batch))
    check.fail("position must be a scalar or [", batch, "], not of shape ", shape_of(position));
  return static_cast<const int64_t*>(check.dense("position", position, {ScalarType::Long}));
}

const float* check_angles(const Check& check, const char* name, const Tensor& angles, bool each,
                          const Tensor& keys) {
  if (each) return check.matrix<float>(name, angles, keys.size(0), keys.size(3));
  return check.vector<float>(name, angles, keys.size(3));
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
  a.position = check_position(check, position, q.size(0));
  a.each = position.dim() == 1;
  a.cos = check_angles(check, "cos", cos, a.each, keys);
  a.sin = check_angles(check, "sin", sin, a.each, keys);
  Tensor y = torch::stable::new_empty(q, {q.size(0), q.size(1)});
  if (q.size(0) * q.size(1) == 0) return y;

  a.q_stride = q.stride(0), a.k_stride = k.stride(0), a.v_stride = v.stride(0);
  a.y = y.data_ptr();
  a.batch = static_cast<int>(keys.size(0));
  a.heads = static_cast<int>(q.size(1) / keys.size(3));
  a.shared_by = static_cast<int>(q.size(1) / k.size(1));
  a.capacity = static_cast<int>(keys.size(2));
  a.width = static_cast<int>(keys.size(3));
  const auto kernel = by_element(q.scalar_type(), launch_any<__nv_bfloat16>,
                                 launch_any<__half>, launch_any<float>);
  launch_op(check, kernel, a);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(questtrain, CUDA, m) {
  m.impl("decode_attention", TORCH_BOX(&attend));
}

}  // namespace questtrain
