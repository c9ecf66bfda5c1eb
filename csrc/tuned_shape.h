// Which measured shape a product is nearest to.
#pragma once

#include <cmath>

namespace questtrain {

// In all three logarithms.
template <class Shape>
float distance_from(const Shape& shape, int rows, int columns, int width) {
  return std::fabs(std::log2(float(rows) / shape.rows)) +
         std::fabs(std::log2(float(columns) / shape.columns)) +
         std::fabs(std::log2(float(width) / shape.width));
}

}  // namespace questtrain
