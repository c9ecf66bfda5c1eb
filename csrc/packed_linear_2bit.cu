#include "packed_linear.cuh"

cudaError_t questtrain::packed_linear_2bit(const PackedLinearArguments& arguments,
                                          cudaStream_t stream) {
  return launch_bits<2>(arguments, stream);
}
