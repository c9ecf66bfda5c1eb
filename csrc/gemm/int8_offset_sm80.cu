#include "int8_sm80.cuh"

#include "int8_sm80.h"
#include "offset_sum.cuh"

namespace questtrain {
namespace {

template <class ThreadMap>
struct Corrected {
  using Compute = cutlass::epilogue::threadblock::VisitorCompute<
      OffsetSum, int32_t, int32_t, cutlass::FloatRoundStyle::round_to_nearest>;
  using XSum = cutlass::epilogue::threadblock::VisitorColBroadcast<ThreadMap, int32_t, RowStride>;
  using WeightSum =
      cutlass::epilogue::threadblock::VisitorRowBroadcast<ThreadMap, int32_t, ColumnStride>;
  using Constant = cutlass::epilogue::threadblock::VisitorScalarBroadcast<int32_t>;
  using Node = cutlass::epilogue::threadblock::Sm80EVT<
      Compute, cutlass::epilogue::threadblock::VisitorAccFetch, XSum, WeightSum, Constant, Constant,
      Constant>;
  static typename Node::Arguments arguments(const OffsetArguments& a) {
    return {{},
            {const_cast<int32_t*>(a.x_sums), 0, {}},
            {const_cast<int32_t*>(a.weight_sums), 0, {}},
            {{a.product_factor}},
            {{a.sum_factor}},
            {{a.constant}},
            {}};
  }
};

template <class Out>
cudaError_t run(const OffsetArguments& a, cudaStream_t stream) {
  using Gemm = IntegerGemm<int8_t, Out, cutlass::gemm::GemmShape<128, 128, 64>,
                           cutlass::gemm::GemmShape<64, 64, 64>,
                           cutlass::gemm::GemmShape<16, 8, 32>, 3, Corrected>;
  return Gemm::run(a, stream);
}

}  // namespace

cudaError_t int8_offset_sm80(Output output, const OffsetArguments& arguments,
                             cudaStream_t stream) {
  switch (output) {
    case Output::bfloat16: return run<cutlass::bfloat16_t>(arguments, stream);
    case Output::half: return run<cutlass::half_t>(arguments, stream);
    default: return run<float>(arguments, stream);
  }
}

}  // namespace questtrain
