#include "packed_linear.cuh"

cudaError_t questtrain::packed_linear_1bit(const PackedLinearArguments& arguments,
                                          cudaStream_t stream) {
  return launch_bits<1>(arguments, stream);
}
