#include "int8_sm80.cuh"

#include "int8_sm80.h"

namespace questtrain {
namespace {

// The accumulator is the sum already.
template <class ThreadMap>
struct Accumulator {
  using Node = cutlass::epilogue::threadblock::VisitorAccFetch;
  static typename Node::Arguments arguments(const Int8Arguments&) { return {}; }
};

template <class Out>
cudaError_t run(const Int8Arguments& a, cudaStream_t stream) {
  using Instruction = cutlass::gemm::GemmShape<16, 8, 32>;
  using Large = IntegerGemm<int8_t, Out, cutlass::gemm::GemmShape<128, 128, 64>,
                            cutlass::gemm::GemmShape<64, 64, 64>, Instruction, 3, Accumulator>;
  using Small = IntegerGemm<int8_t, Out, cutlass::gemm::GemmShape<64, 64, 64>,
                            cutlass::gemm::GemmShape<32, 32, 64>, Instruction, 4, Accumulator>;
  return a.rows > 64 ? Large::run(a, stream) : Small::run(a, stream);
}

}  // namespace

cudaError_t int8_sm80(Output output, const Int8Arguments& arguments, cudaStream_t stream) {
  switch (output) {
    case Output::bfloat16: return run<cutlass::bfloat16_t>(arguments, stream);
    case Output::half: return run<cutlass::half_t>(arguments, stream);
    default: return run<float>(arguments, stream);
  }
}

}  // namespace questtrain
