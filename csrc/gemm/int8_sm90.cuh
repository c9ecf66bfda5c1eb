// INT8 products on Hopper's wgmma (CUTLASS 3.x: TMA, warp specialization), dequantized in the
// epilogue: y[m, n] = x_scales[m] · (weight_scales[n] · float(acc)), rounded once to y's type.
//
// The integers reach the tensor cores as they are: on the odd grid no correction is needed. Only where
// a side has 256 levels (`offset`) the accumulator is corrected first, in int32.
// `swapped` computes yᵀ: small numbers of rows become the tile's narrow side.
#pragma once

#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/util/packed_stride.hpp"

#include "../launch.cuh"
#include "int8.h"
#include "offset_sum.cuh"

namespace questtrain {

using cute::Int;
using cute::Shape;
using cute::Stride;

struct Pingpong {
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
  static constexpr int kEpilogueRows = 64;
};
struct Cooperative {
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
  static constexpr int kEpilogueRows = 128;
};
struct OneConsumer {
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecialized;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
  static constexpr int kEpilogueRows = 64;
};

template <class Out, class Tile, class Cluster, class Schedule, bool swapped, bool offset = false>
struct Int8Gemm {
  using Arguments = std::conditional_t<offset, OffsetArguments, Int8Arguments>;
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  using LayoutD =
      std::conditional_t<swapped, cutlass::layout::ColumnMajor, cutlass::layout::RowMajor>;
  static constexpr int kAlignmentD = 128 / cutlass::sizeof_bits<Out>::value;
  static constexpr int kAlignment = 16;

  // The tree mirrors the formula whichever operand is the kernel's A.
  template <class T>
  using ByRow = cutlass::epilogue::fusion::Sm90ColBroadcast<0, Tile, T, T,
                                                            Stride<Int<1>, Int<0>, Int<0>>>;
  template <class T>
  using ByColumn = cutlass::epilogue::fusion::Sm90RowBroadcast<0, Tile, T, T,
                                                               Stride<Int<0>, Int<1>, Int<0>>>;
  template <class T>
  using OfX = std::conditional_t<swapped, ByColumn<T>, ByRow<T>>;
  template <class T>
  using OfWeight = std::conditional_t<swapped, ByRow<T>, ByColumn<T>>;
  using Accumulator = cutlass::epilogue::fusion::Sm90AccFetch;
  using Constant = cutlass::epilogue::fusion::Sm90ScalarBroadcast<int32_t>;
  using Corrected = cutlass::epilogue::fusion::Sm90EVT<
      cutlass::epilogue::fusion::Sm90Compute<OffsetSum, int32_t, int32_t, kRound>, Accumulator,
      OfX<int32_t>, OfWeight<int32_t>, Constant, Constant, Constant>;
  using Sum = std::conditional_t<offset, Corrected, Accumulator>;
  template <class Result>
  using Times =
      cutlass::epilogue::fusion::Sm90Compute<cutlass::multiplies, Result, float, kRound>;
  using ScaledByWeight = cutlass::epilogue::fusion::Sm90EVT<
      Times<float>, OfWeight<float>, Sum>;
  using Scaled = cutlass::epilogue::fusion::Sm90EVT<Times<Out>, OfX<float>, ScaledByWeight>;

  // What is stored at once: rows of 128 bytes, which swapped tiles have by themselves.
  using EpilogueTile =
      std::conditional_t<swapped, cutlass::epilogue::collective::EpilogueTileAuto,
                         Shape<Int<Schedule::kEpilogueRows>, Int<128 / sizeof(Out)>>>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      EpilogueTile, int32_t, float, void, LayoutD, kAlignmentD, Out, LayoutD, kAlignmentD,
      typename Schedule::Epilogue, Scaled>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, int8_t, cutlass::layout::RowMajor,
      kAlignment, int8_t, cutlass::layout::ColumnMajor, kAlignment, int32_t, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<
          static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      typename Schedule::Mainloop>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static typename Sum::Arguments sum_arguments(const Arguments& a) {
    if constexpr (offset)
      return {{},
              {a.x_sums},
              {a.weight_sums},
              {{a.product_factor}},
              {{a.sum_factor}},
              {{a.constant}},
              {}};
    else
      return {};
  }

  static cudaError_t run(const Arguments& a, cudaStream_t stream) {
    const int m = swapped ? a.columns : a.rows, n = swapped ? a.rows : a.columns, k = a.width;
    const auto* first = static_cast<const int8_t*>(swapped ? a.weight : a.x);
    const auto* second = static_cast<const int8_t*>(swapped ? a.x : a.weight);
    const auto stride_a =
        cutlass::make_cute_packed_stride(typename Kernel::StrideA{}, cute::make_shape(m, k, 1));
    const auto stride_b =
        cutlass::make_cute_packed_stride(typename Kernel::StrideB{}, cute::make_shape(n, k, 1));
    const auto stride_d =
        cutlass::make_cute_packed_stride(typename Kernel::StrideD{}, cute::make_shape(m, n, 1));
    typename Gemm::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGemm,
                                       {m, n, k, 1},
                                       {first, stride_a, second, stride_b},
                                       {{}, nullptr, {}, static_cast<Out*>(a.y), stride_d}};
    arguments.epilogue.thread = {{a.x_scales}, {{a.weight_scales}, sum_arguments(a), {}}, {}};
    arguments.hw_info.sm_count = device_attribute(cudaDevAttrMultiProcessorCount);
    using Order = std::decay_t<decltype(arguments.scheduler.raster_order)>;
    arguments.scheduler.max_swizzle_size = a.swizzle;
    arguments.scheduler.raster_order = a.along_columns ? Order::AlongN : Order::AlongM;
    if (Gemm::can_implement(arguments) != cutlass::Status::kSuccess ||
        Gemm::get_workspace_size(arguments) != 0)
      return cudaErrorNotSupported;
    Gemm gemm;
    if (gemm.initialize(arguments, nullptr, stream) != cutlass::Status::kSuccess)
      return cudaErrorInvalidConfiguration;
    const bool dependent = true;  // the mainloop waits for the kernel before, see launch.cuh
    if (gemm.run(stream, nullptr, dependent) != cutlass::Status::kSuccess)
      return cudaErrorLaunchFailure;
    return cudaPeekAtLastError();
  }
};

}  // namespace questtrain
