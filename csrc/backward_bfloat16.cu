#include "backward.cuh"

cudaError_t questtrain::backward_bfloat16(Origin origin, const BackwardArguments& arguments,
                                    cudaStream_t stream) {
  return launch_backward<__nv_bfloat16>(origin, arguments, stream);
}
