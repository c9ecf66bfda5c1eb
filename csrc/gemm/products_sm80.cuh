// Integer products on mma.sync (CUTLASS 2.x): the path of every GPU but Hopper, from sm_80 on.
//
// The epilogue scales as on sm_90: y[m, n] = x_scales[m] · (weight_scales[n] · float(sum)), rounded
// once. `SumOf` makes the exact integer sum out of the accumulator.
#pragma once

// The visitors' header needs what this one includes.
#include "cutlass/gemm/device/gemm_universal.h"

#include "cutlass/epilogue/threadblock/fusion/visitors.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/default_gemm_universal_with_visitor.h"

#include "../launch.cuh"
#include "offset_sum.cuh"
#include "products_sm80.h"

namespace questtrain {

using cute::Int;
using cute::Stride;
using RowStride = Stride<Int<1>, Int<0>, int64_t>;
using ColumnStride = Stride<Int<0>, Int<1>, int64_t>;
using MatrixStride = Stride<int64_t, Int<1>, int64_t>;

// The accumulator is the sum already.
template <class ThreadMap>
struct AccumulatorSum {
  using Node = cutlass::epilogue::threadblock::VisitorAccFetch;
  static typename Node::Arguments arguments(const Int8Arguments&) { return {}; }
};

// The sum is made of the accumulator, see int8.h.
template <class ThreadMap>
struct CorrectedSum {
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

template <class Element, class Out, class Block, class Warp, class Instruction, int stages,
          template <class> class SumOf>
struct IntegerGemm {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  static constexpr int kAlignment = 128 / cutlass::sizeof_bits<Element>::value;
  static constexpr int kAlignmentD = 128 / cutlass::sizeof_bits<Out>::value;
  using ThreadMap =
      cutlass::epilogue::threadblock::OutputTileThreadLayout<Block, Warp, Out, kAlignmentD, 1>;

  template <class Node, class... Children>
  using Tree = cutlass::epilogue::threadblock::Sm80EVT<Node, Children...>;
  template <class Result>
  using Times =
      cutlass::epilogue::threadblock::VisitorCompute<cutlass::multiplies, Result, float, kRound>;
  using XScale = cutlass::epilogue::threadblock::VisitorColBroadcast<ThreadMap, float, RowStride>;
  using WeightScale =
      cutlass::epilogue::threadblock::VisitorRowBroadcast<ThreadMap, float, ColumnStride>;
  using Sum = SumOf<ThreadMap>;
  using Scaled = Tree<Times<Out>, XScale, Tree<Times<float>, WeightScale, typename Sum::Node>>;
  using Stored = Tree<
      cutlass::epilogue::threadblock::VisitorAuxStore<ThreadMap, Out, kRound, MatrixStride>,
      Scaled>;

  using Kernel = typename cutlass::gemm::kernel::DefaultGemmWithVisitor<
      Element, cutlass::layout::RowMajor, cutlass::ComplexTransform::kNone, kAlignment, Element,
      cutlass::layout::ColumnMajor, cutlass::ComplexTransform::kNone, kAlignment, Out,
      cutlass::layout::RowMajor, kAlignmentD, int32_t, float, cutlass::arch::OpClassTensorOp,
      cutlass::arch::Sm80, Block, Warp, Instruction, Stored,
      cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, stages,
      cutlass::arch::OpMultiplyAddSaturate, 1>::GemmKernel;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  template <class Arguments>
  static cudaError_t run(const Arguments& a, cudaStream_t stream) {
    const MatrixStride stride{a.columns, Int<1>{}, int64_t(a.rows) * a.columns};
    typename Stored::Arguments epilogue{
        {{const_cast<float*>(a.x_scales), 0.f, {}},
         {{const_cast<float*>(a.weight_scales), 0.f, {}}, Sum::arguments(a), {}},
         {}},
        {static_cast<Out*>(a.y), stride}};
    typename Gemm::Arguments arguments(
        cutlass::gemm::GemmUniversalMode::kGemm, {a.rows, a.columns, a.width}, 1, epilogue, a.x,
        a.weight, nullptr, nullptr, int64_t(a.rows) * a.width, int64_t(a.columns) * a.width, 0, 0,
        a.width, a.width, 0, 0);
    if (Gemm::can_implement(arguments) != cutlass::Status::kSuccess) return cudaErrorNotSupported;
    Gemm gemm;
    if (gemm.initialize(arguments, nullptr, stream) != cutlass::Status::kSuccess)
      return cudaErrorInvalidConfiguration;
    if (gemm.run(stream) != cutlass::Status::kSuccess) return cudaErrorLaunchFailure;
    return cudaPeekAtLastError();
  }
};

// ProductOf<Out>::run of the output's type. A source names its own `Product` in a namespace without a
// name: two of one name would be one function to the linker.
template <template <class> class ProductOf, class Arguments>
cudaError_t run_product(Output output, const Arguments& arguments, cudaStream_t stream) {
  switch (output) {
    case Output::bfloat16: return ProductOf<cutlass::bfloat16_t>::run(arguments, stream);
    case Output::half: return ProductOf<cutlass::half_t>::run(arguments, stream);
    default: return ProductOf<float>::run(arguments, stream);
  }
}

}  // namespace questtrain
