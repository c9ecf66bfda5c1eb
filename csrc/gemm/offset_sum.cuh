// The sum of products of integers out of that of their codes, see int8.h: a node of both epilogues.
#pragma once

#include "cutlass/array.h"

namespace questtrain {

template <class T>
struct OffsetSum;

template <int n>
struct OffsetSum<cutlass::Array<int32_t, n>> {
  using Values = cutlass::Array<int32_t, n>;
  CUTLASS_HOST_DEVICE Values operator()(const Values& products, const Values& x_sums,
                                        const Values& weight_sums, const Values& product_factor,
                                        const Values& sum_factor, const Values& constant) const {
    Values result;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < n; ++i)
      result[i] = product_factor[i] * products[i] + sum_factor[i] * (x_sums[i] + weight_sums[i]) +
                  constant[i];
    return result;
  }
};

}  // namespace questtrain
