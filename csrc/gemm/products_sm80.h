// Integer products on mma.sync: of int8 codes, of int8 codes with a side of 256 levels, and of 4-bit
// level indices, which only sm_80, 86 and 89 multiply natively; later GPUs emulate it slowly.
#pragma once

#include "int8.h"

namespace questtrain {

cudaError_t int8_sm80(Output, const Int8Arguments&, cudaStream_t);
cudaError_t int8_offset_sm80(Output, const OffsetArguments&, cudaStream_t);
cudaError_t int4_sm80(Output, const OffsetArguments&, cudaStream_t);

}  // namespace questtrain
