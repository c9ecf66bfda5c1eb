#include "int8_sm90.cuh"

namespace questtrain {

cudaError_t int8_192x128_pingpong_offset(const OffsetArguments& arguments, cudaStream_t stream) {
  return Int8Gemm<cutlass::bfloat16_t, Shape<Int<192>, Int<128>, Int<128>>,
                  Shape<Int<2>, Int<1>, Int<1>>, Pingpong, false, true>::run(arguments, stream);
}

}  // namespace questtrain
