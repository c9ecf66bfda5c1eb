#include "packed_streaming.cuh"

cudaError_t questtrain::packed_linear_1bit(const PackedLinearArguments& arguments,
                                          cudaStream_t stream) {
  return launch_streaming<1>(arguments, stream);
}
