#include "backward.cuh"

cudaError_t questtrain::backward_half(Origin origin, const BackwardArguments& arguments,
                                    cudaStream_t stream) {
  return launch_backward<__half>(origin, arguments, stream);
}
