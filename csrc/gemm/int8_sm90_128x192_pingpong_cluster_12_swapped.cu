#include "int8_sm90.cuh"

namespace questtrain {

cudaError_t int8_128x192_pingpong_cluster_12_swapped(const Int8Arguments& arguments,
                                                     cudaStream_t stream) {
  return Int8Gemm<cutlass::bfloat16_t, Shape<Int<128>, Int<192>, Int<128>>,
                  Shape<Int<1>, Int<2>, Int<1>>, Pingpong, true>::run(arguments, stream);
}

}  // namespace questtrain
