#include "backward.cuh"

cudaError_t questtrain::backward_float(Origin origin, const BackwardArguments& arguments,
                                    cudaStream_t stream) {
  return launch_backward<float>(origin, arguments, stream);
}
