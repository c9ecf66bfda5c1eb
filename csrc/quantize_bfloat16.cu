#include "quantize.cuh"

cudaError_t questtrain::quantize_bfloat16(Operand operand, const QuantizeArguments& arguments,
                                     cudaStream_t stream) {
  return launch_quantize<__nv_bfloat16>(operand, arguments, stream);
}
