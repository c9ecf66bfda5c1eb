// INT8 products on sm_90, an object for each TILE: configurations_sm90.inc
#include "int8_sm90.cuh"

namespace questtrain {
namespace {

#define OTHER_TILE(name, Arguments, Out, m, n, k, cluster_m, cluster_n, schedule, swapped)       \
  using name##_gemm = Int8Gemm<Out, Shape<Int<m>, Int<n>, Int<k>>,                               \
                               Shape<Int<cluster_m>, Int<cluster_n>, Int<1>>, schedule, swapped, \
                               std::is_same_v<Arguments, OffsetArguments>>;
#include "configurations_sm90.inc"

#define JOINED(name, suffix) name##suffix
#define GEMM_OF(name) JOINED(name, _gemm)

}  // namespace

// Of all of them, this one is compiled.
cudaError_t TILE(const GEMM_OF(TILE)::Arguments& arguments, cudaStream_t stream) {
  return GEMM_OF(TILE)::run(arguments, stream);
}

}  // namespace questtrain
