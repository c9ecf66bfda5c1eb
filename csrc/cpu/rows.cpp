#include "rows.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
// One function for each instruction set; the loader picks the machine's.
#define QUESTTRAIN_EVERY_ISA __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define QUESTTRAIN_EVERY_ISA
#endif
#define QUESTTRAIN_INLINE inline __attribute__((always_inline))

namespace questtrain::cpu {
namespace {

constexpr int kLanes = 8;
constexpr float kTiny = 1e-30f;            // the smallest rms
constexpr float kRounder = 12582912.f;     // 1.5·2^23: added and taken off, it rounds half to even

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
constexpr Ints kBits = {1, 2, 4, 8, 16, 32, 64, 128};

QUESTTRAIN_INLINE Floats load(const float* from) {
  Floats result;
  std::memcpy(&result, from, sizeof result);
  return result;
}

QUESTTRAIN_INLINE void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

template <typename T>
QUESTTRAIN_INLINE void read_as(const void* from, int width, float* to) {
  const T* values = static_cast<const T*>(from);
  for (int i = 0; i < width; ++i) to[i] = static_cast<float>(values[i]);
}

QUESTTRAIN_INLINE void read(const void* from, Element type, int width, float* to) {
  switch (type) {
    case Element::bfloat16: return read_as<c10::BFloat16>(from, width, to);
    case Element::half: return read_as<c10::Half>(from, width, to);
    case Element::float32: return read_as<float>(from, width, to);
  }
}

template <typename T>
QUESTTRAIN_INLINE void write_as(const float* from, int width, void* to) {
  T* values = static_cast<T*>(to);
  for (int i = 0; i < width; ++i) values[i] = static_cast<T>(from[i]);
}

QUESTTRAIN_INLINE void write(const float* from, int width, Element type, void* to) {
  switch (type) {
    case Element::bfloat16: return write_as<c10::BFloat16>(from, width, to);
    case Element::half: return write_as<c10::Half>(from, width, to);
    case Element::float32: return write_as<float>(from, width, to);
  }
}

// Sums and differences of lanes 1, 2 and 4 apart.
QUESTTRAIN_INLINE Floats butterflies(Floats x) {
  const Floats one = {1, -1, 1, -1, 1, -1, 1, -1}, two = {1, 1, -1, -1, 1, 1, -1, -1};
  const Floats four = {1, 1, 1, 1, -1, -1, -1, -1};
  x = x * one + __builtin_shuffle(x, Ints{1, 0, 3, 2, 5, 4, 7, 6});
  x = x * two + __builtin_shuffle(x, Ints{2, 3, 0, 1, 6, 7, 4, 5});
  return x * four + __builtin_shuffle(x, Ints{4, 5, 6, 7, 0, 1, 2, 3});
}

// The orthonormal transform of each block, in place.
QUESTTRAIN_INLINE void rotate(float* row, int width, int block) {
  if (block == 1) return;
  const float orthonormal = 1.f / std::sqrt(static_cast<float>(block));
  for (float* x = row; x < row + width; x += block) {
    for (int i = 0; i < block; i += kLanes) store(x + i, butterflies(load(x + i)));
    for (int half = kLanes; half < block; half *= 2)
      for (int start = 0; start < block; start += 2 * half)
        for (int i = start; i < start + half; i += kLanes) {
          const Floats a = load(x + i), b = load(x + i + half);
          store(x + i, a + b);
          store(x + i + half, a - b);
        }
    for (int i = 0; i < block; ++i) x[i] *= orthonormal;
  }
}

QUESTTRAIN_INLINE float mean_square(const float* x, int width) {
  Floats sums[2] = {};
  for (int i = 0; i < width; i += 2 * kLanes)
    for (int j = 0; j < 2; ++j) {
      const Floats value = load(x + i + j * kLanes);
      sums[j] += value * value;
    }
  const Floats both = sums[0] + sums[1];
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += both[lane];
  return total / width;
}

// A bit for each lane where |x| is at most `most`.
QUESTTRAIN_INLINE uint8_t trusted(Floats x, float most) {
  const Ints bits = ((x <= most) & (x >= -most)) & kBits;
  int result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result |= bits[lane];
  return static_cast<uint8_t>(result);
}

// The index of the level nearest to each value, half to even; NaN is at 0.
QUESTTRAIN_INLINE void place_on_grid(const float* __restrict x, int width, float half_width,
                                     int steps, uint8_t* __restrict indices) {
  const float most = static_cast<float>(steps), half_steps = most / 2;
  for (int i = 0; i < width; ++i) {
    float place = x[i] / half_width * half_steps + half_steps;
    place = place > 0.f ? place : 0.f;
    place = place < most ? place : most;
    indices[i] = static_cast<uint8_t>(static_cast<int32_t>(place + kRounder - kRounder));
  }
}

// Writes the codes of level indices; returns the sum of what they are as int8 codes.
QUESTTRAIN_INLINE int32_t encode(const uint8_t* __restrict indices, const RowFormat& format,
                                 void* codes) {
  const int width = format.width, in_byte = 8 / format.bits;
  const int factor = format.offset ? 1 : 2, lift = format.offset ? 128 : format.levels - 1;
  int32_t total = 0;
  for (int i = 0; i < width; ++i) total += indices[i];
  if (in_byte == 1) {
    auto* __restrict to = static_cast<int8_t*>(codes);
    for (int i = 0; i < width; ++i) to[i] = static_cast<int8_t>(factor * indices[i] - lift);
  } else {
    auto* __restrict to = static_cast<uint8_t*>(codes);
    for (int i = 0; i < width / in_byte; ++i) {
      int code = 0;
      for (int j = 0; j < in_byte; ++j) code |= indices[i * in_byte + j] << (format.bits * j);
      to[i] = static_cast<uint8_t>(code);
    }
  }
  return factor * total - lift * width;
}

}  // namespace

QUESTTRAIN_EVERY_ISA
void quantize_row(const void* x, Element type, const RowFormat& format, const QuantizedRow& out,
                  float* scratch) {
  const int width = format.width, steps = format.levels - 1;
  read(x, type, width, scratch);
  rotate(scratch, width, format.block);
  const float rms = std::sqrt(mean_square(scratch, width));
  const float half_width = format.alpha * (rms < kTiny ? kTiny : rms);  // NaN stays
  *out.scale = half_width / static_cast<float>(steps);
  if (out.mask != nullptr) {
    const float most = format.trust * half_width;
    for (int i = 0; i < width; i += kLanes)
      out.mask[i / kLanes] = trusted(load(scratch + i), most);
  }
  auto* indices = reinterpret_cast<uint8_t*>(scratch + width);
  place_on_grid(scratch, width, half_width, steps, indices);
  *out.sum = encode(indices, format, out.codes);
}

QUESTTRAIN_EVERY_ISA
void backward_row(const void* grad, Element type, const uint8_t* mask, int width, int block,
                  void* out, float* scratch) {
  read(grad, type, width, scratch);
  if (mask != nullptr)
    for (int i = 0; i < width; i += kLanes) {
      const Ints passes = ((Ints{} + mask[i / kLanes]) & kBits) != 0;
      store(scratch + i, (Floats)((Ints)load(scratch + i) & passes));
    }
  rotate(scratch, width, block);
  write(scratch, width, type, out);
}

QUESTTRAIN_EVERY_ISA
void dequantize_row(const int8_t* codes, float scale, bool offset, int width, Element type,
                    void* out, float* scratch) {
  const int factor = offset ? 2 : 1, lift = offset ? 1 : 0;
  auto* values = type == Element::float32 ? static_cast<float*>(out) : scratch;
  for (int i = 0; i < width; ++i) values[i] = static_cast<float>(factor * codes[i] + lift) * scale;
  if (type != Element::float32) write(values, width, type, out);
}

}  // namespace questtrain::cpu
