// INT8 products on sm_90, an object for each 4 of TILE: configurations_sm90.inc
#include "int8_sm90.cuh"

namespace questtrain {
namespace {

#define OTHER_TILE(name, Arguments, Out, m, n, k, cluster_m, cluster_n, schedule, swapped)       \
  using name##_gemm = Int8Gemm<Out, Shape<Int<m>, Int<n>, Int<k>>,                               \
                               Shape<Int<cluster_m>, Int<cluster_n>, Int<1>>, schedule, swapped, \
                               std::is_same_v<Arguments, OffsetArguments>>;
#include "configurations_sm90.inc"

}  // namespace

// Of all of them, these are compiled.
#define TILE(name)                                                                   \
  cudaError_t name(const name##_gemm::Arguments& arguments, cudaStream_t stream) {   \
    return name##_gemm::run(arguments, stream);                                      \
  }
TILES

}  // namespace questtrain
