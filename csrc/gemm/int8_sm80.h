#pragma once

#include "int8.h"

namespace questtrain {

cudaError_t int8_sm80(Output, const Int8Arguments&, cudaStream_t);
cudaError_t int8_offset_sm80(Output, const OffsetArguments&, cudaStream_t);

}  // namespace questtrain
