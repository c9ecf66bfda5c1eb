#include "int8_sm90.cuh"

namespace questtrain {

cudaError_t int8_64x64_swapped_offset(const OffsetArguments& arguments, cudaStream_t stream) {
  return Int8Gemm<cutlass::bfloat16_t, Shape<Int<64>, Int<64>, Int<256>>,
                  Shape<Int<1>, Int<1>, Int<1>>, OneConsumer, true, true>::run(arguments, stream);
}

}  // namespace questtrain
