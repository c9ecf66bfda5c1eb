#include "packed_linear.cuh"

cudaError_t questtrain::packed_linear_4bit(const PackedLinearArguments& arguments,
                                          cudaStream_t stream) {
  return launch_bits<4>(arguments, stream);
}
