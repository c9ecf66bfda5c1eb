#include "products_sm80.cuh"

namespace questtrain {
namespace {

template <class Out>
using Product =
    IntegerGemm<int8_t, Out, cutlass::gemm::GemmShape<128, 128, 64>,
                cutlass::gemm::GemmShape<64, 64, 64>, cutlass::gemm::GemmShape<16, 8, 32>, 3,
                CorrectedSum>;

}  // namespace

cudaError_t int8_offset_sm80(Output output, const OffsetArguments& arguments, cudaStream_t stream) {
  return run_product<Product>(output, arguments, stream);
}

}  // namespace questtrain
