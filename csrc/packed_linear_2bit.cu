#include "packed_streaming.cuh"

cudaError_t questtrain::packed_linear_2bit(const PackedLinearArguments& arguments,
                                          cudaStream_t stream) {
  return launch_streaming<2>(arguments, stream);
}
