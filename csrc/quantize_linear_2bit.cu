#include "packed_resident.cuh"

cudaError_t questtrain::quantize_linear_2bit(Operand operand, bool half,
                                            const PackedLinearArguments& a,
                                            const QuantizeArguments& q, cudaStream_t stream) {
  return half ? launch_elements<2, __half>(operand, a, q, stream)
              : launch_elements<2, __nv_bfloat16>(operand, a, q, stream);
}
