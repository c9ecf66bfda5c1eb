#include "int8_sm90.cuh"

namespace questtrain {

cudaError_t int8_128x256_cooperative_offset(const OffsetArguments& arguments, cudaStream_t stream) {
  return Int8Gemm<cutlass::bfloat16_t, Shape<Int<128>, Int<256>, Int<128>>,
                  Shape<Int<2>, Int<1>, Int<1>>, Cooperative, false, true>::run(arguments, stream);
}

}  // namespace questtrain
