// What the bindings on the CPU share: room for panels, and how work is spread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>

#include "../operands.h"
#include "kernels.h"

namespace questtrain::cpu {

// Uninitialized memory that starts a cache line.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), kLine))) {}
  ~Scratch() { ::operator delete(data_, kLine); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  T* data_;
};

// Starting threads takes as long as about so many multiplications.
constexpr int64_t kWorkOfAThread = 1 << 20;

// f(begin, end) over 0 … count, on torch's threads where the work is worth it; `work` is that of one.
template <typename F>
void spread(int64_t count, int64_t work, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kWorkOfAThread / std::max<int64_t>(work, 1));
  torch::stable::parallel_for(0, count, grain, f);
}

// A product's tasks: one panel of the weight with one block of rows of x each, block by block, so
// that neighbours share rows that are in the cache.
struct Tasks {
  int64_t rows, columns, block;

  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
  int64_t count() const { return panels() * ((rows + block - 1) / block); }
  int64_t first_row(int64_t task) const { return task / panels() * block; }
  int64_t rows_of(int64_t task) const { return std::min(block, rows - first_row(task)); }
  int64_t first_column(int64_t task) const { return task % panels() * kPanel; }
  int columns_of(int64_t task) const {
    return static_cast<int>(std::min<int64_t>(kPanel, columns - first_column(task)));
  }
};

// `count` floats at element `offset` of a tensor of bf16, fp16 or fp32, rounded to its dtype.
void store_floats(const float* from, int count, void* to, int64_t offset, ScalarType type);

// The other way round.
void load_floats(const void* from, int64_t offset, int64_t count, ScalarType type, float* to);

}  // namespace questtrain::cpu
