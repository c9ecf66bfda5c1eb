// 8 elements that a thread loads, widens to fp32, computes with, rounds and stores together.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace questtrain {

constexpr int kChunks = 4;           // a thread's
constexpr int kWarpElements = 1024;  // 32 lanes · 4 chunks · 8

// 8 elements, as they lie in memory.
template <class T>
struct alignas(16) Chunk {
  T element[8];
};

// Of what is read once, past the caches; zeros outside. Whole words: elements chosen one by one would
// lie in a register each.
template <class T>
__device__ __forceinline__ Chunk<T> load_chunk(const Chunk<T>* source, bool inside = true) {
  Chunk<T> result;
#pragma unroll
  for (int i = 0; i < int(sizeof(Chunk<T>) / 16); ++i)
    reinterpret_cast<uint4*>(&result)[i] =
        inside ? __ldcs(reinterpret_cast<const uint4*>(source) + i) : uint4{};
  return result;
}

// Of a vector that every row reads.
template <class T>
__device__ __forceinline__ Chunk<T> load_again(const Chunk<T>* source, bool inside = true) {
  Chunk<T> result;
#pragma unroll
  for (int i = 0; i < int(sizeof(Chunk<T>) / 16); ++i)
    reinterpret_cast<uint4*>(&result)[i] =
        inside ? __ldg(reinterpret_cast<const uint4*>(source) + i) : uint4{};
  return result;
}

template <class T>
__device__ __forceinline__ void store_chunk(Chunk<T>* target, const Chunk<T>& value) {
#pragma unroll
  for (int i = 0; i < int(sizeof(Chunk<T>) / 16); ++i)
    reinterpret_cast<uint4*>(target)[i] = reinterpret_cast<const uint4*>(&value)[i];
}

__device__ __forceinline__ __nv_bfloat162* pairs(Chunk<__nv_bfloat16>& x) {
  return reinterpret_cast<__nv_bfloat162*>(&x);
}
__device__ __forceinline__ const __nv_bfloat162* pairs(const Chunk<__nv_bfloat16>& x) {
  return reinterpret_cast<const __nv_bfloat162*>(&x);
}

template <class T>
__device__ __forceinline__ T narrow(float value);

template <>
__device__ __forceinline__ float narrow(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half narrow(float value) {
  return __float2half_rn(value);
}

template <class T>
__device__ __forceinline__ void widen(const Chunk<T>& x, float (&v)[8]) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(&x);
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      v[j] = __uint_as_float(words[j / 2] << 16);
      v[j + 1] = __uint_as_float(words[j / 2] & 0xffff0000u);
    } else if constexpr (std::is_same_v<T, __half>) {
      const float2 pair = __half22float2(reinterpret_cast<const __half2&>(words[j / 2]));
      v[j] = pair.x;
      v[j + 1] = pair.y;
    } else {
      v[j] = x.element[j];
      v[j + 1] = x.element[j + 1];
    }
  }
}

template <class T>
__device__ __forceinline__ Chunk<T> narrowed(const float (&v)[8]) {
  Chunk<T> result;
#pragma unroll
  for (int j = 0; j < 8; ++j) result.element[j] = narrow<T>(v[j]);
  return result;
}

// Elementwise, rounded once to the result's dtype; pairs of bf16 in one instruction.
template <class T>
__device__ __forceinline__ Chunk<T> sum_of(const Chunk<T>& x, const Chunk<T>& y) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    Chunk<T> sum;
#pragma unroll
    for (int j = 0; j < 4; ++j) pairs(sum)[j] = __hadd2(pairs(x)[j], pairs(y)[j]);
    return sum;
  } else {
    float a[8], b[8];
    widen(x, a);
    widen(y, b);
#pragma unroll
    for (int j = 0; j < 8; ++j) a[j] += b[j];
    return narrowed<T>(a);
  }
}

template <class R, class T, class W>
__device__ __forceinline__ Chunk<R> product_of(const Chunk<T>& x, const Chunk<W>& y) {
  if constexpr (std::is_same_v<T, __nv_bfloat16> && std::is_same_v<T, W>) {
    Chunk<R> product;
#pragma unroll
    for (int j = 0; j < 4; ++j) pairs(product)[j] = __hmul2(pairs(x)[j], pairs(y)[j]);
    return product;
  } else {
    float a[8], b[8];
    widen(x, a);
    widen(y, b);
#pragma unroll
    for (int j = 0; j < 8; ++j) a[j] *= b[j];
    return narrowed<R>(a);
  }
}

}  // namespace questtrain
