#include "packed_streaming.cuh"

cudaError_t questtrain::packed_linear_4bit(const PackedLinearArguments& arguments,
                                          cudaStream_t stream) {
  return launch_streaming<4>(arguments, stream);
}
