// What every device quantizes to and multiplies (questtrain/kernels/formats.py).
#pragma once

#include <cstdint>

namespace questtrain {

constexpr int kLargestWidth = 32768;
constexpr int kOffsetLevels = 256;  // an int8 code c stands for 2c + 1
constexpr int kIntegerLevels = 128;  // the most whose int8 codes are the integers
constexpr int64_t kLevels[] = {2, 3, 4, 8, 16, 32, 64, kIntegerLevels, kOffsetLevels};
constexpr int64_t kBlocks[] = {1, 16, 32, 64, 128, 256};  // of a rotation; 1 is none

}  // namespace questtrain
