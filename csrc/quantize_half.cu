#include "quantize.cuh"

cudaError_t questtrain::quantize_half(Operand operand, const QuantizeArguments& arguments,
                                     cudaStream_t stream) {
  return launch_quantize<__half>(operand, arguments, stream);
}
