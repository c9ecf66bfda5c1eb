#include "products_sm80.cuh"

namespace questtrain {
namespace {

template <class Out>
struct Product {
  using Instruction = cutlass::gemm::GemmShape<16, 8, 32>;
  using Large = IntegerGemm<int8_t, Out, cutlass::gemm::GemmShape<128, 128, 64>,
                            cutlass::gemm::GemmShape<64, 64, 64>, Instruction, 3, AccumulatorSum>;
  using Small = IntegerGemm<int8_t, Out, cutlass::gemm::GemmShape<64, 64, 64>,
                            cutlass::gemm::GemmShape<32, 32, 64>, Instruction, 4, AccumulatorSum>;

  static cudaError_t run(const Int8Arguments& a, cudaStream_t stream) {
    return a.rows > 64 ? Large::run(a, stream) : Small::run(a, stream);
  }
};

}  // namespace

cudaError_t int8_sm80(Output output, const Int8Arguments& arguments, cudaStream_t stream) {
  return run_product<Product>(output, arguments, stream);
}

}  // namespace questtrain
