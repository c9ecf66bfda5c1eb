#include "quantize.cuh"

cudaError_t questtrain::quantize_float(Operand operand, const QuantizeArguments& arguments,
                                     cudaStream_t stream) {
  return launch_quantize<float>(operand, arguments, stream);
}
