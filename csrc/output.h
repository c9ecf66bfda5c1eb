#pragma once

namespace questtrain {

// The element type of a product's result.
enum class Output { bfloat16, half, float32 };

}  // namespace questtrain
