#include "int4_sm80.h"

#include "int8_sm80.cuh"

namespace questtrain {
namespace {

// With v = 2q - 15: Σ v_x·v_w = 4·Σ q_x·q_w - 15·(Σ v_x + Σ v_w) - 225·K, all of it in int32.
template <class T>
struct Centred;

template <int n>
struct Centred<cutlass::Array<int32_t, n>> {
  using Values = cutlass::Array<int32_t, n>;
  CUTLASS_HOST_DEVICE Values operator()(const Values& products, const Values& x_sums,
                                        const Values& weight_sums, const Values& constant) const {
    Values result;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < n; ++i)
      result[i] = 4 * products[i] - 15 * (x_sums[i] + weight_sums[i]) - constant[i];
    return result;
  }
};

template <class ThreadMap>
struct CentredSum {
  using Compute = cutlass::epilogue::threadblock::VisitorCompute<
      Centred, int32_t, int32_t, cutlass::FloatRoundStyle::round_to_nearest>;
  using XSum = cutlass::epilogue::threadblock::VisitorColBroadcast<ThreadMap, int32_t, RowStride>;
  using WeightSum =
      cutlass::epilogue::threadblock::VisitorRowBroadcast<ThreadMap, int32_t, ColumnStride>;
  using Constant = cutlass::epilogue::threadblock::VisitorScalarBroadcast<int32_t>;
  using Node = cutlass::epilogue::threadblock::Sm80EVT<
      Compute, cutlass::epilogue::threadblock::VisitorAccFetch, XSum, WeightSum, Constant>;
  static typename Node::Arguments arguments(const Int4Arguments& a) {
    return {{},
            {const_cast<int32_t*>(a.x_sums), 0, {}},
            {const_cast<int32_t*>(a.weight_sums), 0, {}},
            {{225 * a.width}},
            {}};
  }
};

template <class Out>
cudaError_t run(const Int4Arguments& a, cudaStream_t stream) {
  using Gemm = IntegerGemm<cutlass::uint4b_t, Out, cutlass::gemm::GemmShape<128, 128, 128>,
                           cutlass::gemm::GemmShape<64, 64, 128>,
                           cutlass::gemm::GemmShape<16, 8, 64>, 3, CentredSum>;
  return Gemm::run(a, stream);
}

}  // namespace

cudaError_t int4_sm80(Output output, const Int4Arguments& arguments, cudaStream_t stream) {
  switch (output) {
    case Output::bfloat16: return run<cutlass::bfloat16_t>(arguments, stream);
    case Output::half: return run<cutlass::half_t>(arguments, stream);
    default: return run<float>(arguments, stream);
  }
}

}  // namespace questtrain
