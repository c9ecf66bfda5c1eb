#include "products.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>

namespace questtrain::cpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename T>
void store_as(const float* from, int count, void* to, int64_t offset) {
  T* const values = static_cast<T*>(to) + offset;
  for (int i = 0; i < count; ++i) values[i] = static_cast<T>(from[i]);
}

template <typename T>
void load_as(const void* from, int64_t offset, int64_t count, float* to) {
  const T* const values = static_cast<const T*>(from) + offset;
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(values[i]);
}

}  // namespace

void store_floats(const float* from, int count, void* to, int64_t offset, ScalarType type) {
  if (type == ScalarType::BFloat16) store_as<BFloat16>(from, count, to, offset);
  else if (type == ScalarType::Half) store_as<Half>(from, count, to, offset);
  else store_as<float>(from, count, to, offset);
}

void load_floats(const void* from, int64_t offset, int64_t count, ScalarType type, float* to) {
  if (type == ScalarType::BFloat16) load_as<BFloat16>(from, offset, count, to);
  else if (type == ScalarType::Half) load_as<Half>(from, offset, count, to);
  else load_as<float>(from, offset, count, to);
}

}  // namespace questtrain::cpu
