// What every device quantizes to and multiplies (questtrain/kernels/formats.py).
#pragma once

namespace questtrain {

constexpr int kLargestWidth = 32768;
constexpr int kOffsetLevels = 256;  // an int8 code c stands for 2c + 1

}  // namespace questtrain
