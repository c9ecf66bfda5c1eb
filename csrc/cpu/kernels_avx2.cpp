// The path of CPUs with AVX2 and FMA, compiled for those: what is included here must be without
// code of its own, for other files' copies of it would be merged with this one.
#include "kernels.h"
#include "kernels_x86.inc"

namespace {

constexpr int kLanes = 8, kFewRows = 8, kOuterRows = 6;
typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats to_floats(const int8_t* codes) {
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
}

}  // namespace

#include "kernels.inc"
#include "rows.inc"

namespace {

inline __m256i load_codes(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

inline __m256i widened(const int8_t* from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// maddubs adds two products of an unsigned and a signed byte in int16. With |product| ≤ most, so
// many such sums stay within ±32767 together: 8 for indices up to 15 and any int8 (15 · 128 = 1920,
// 2 · 1920 · 8 = 30720), 72 where both sides have 16 levels.
inline int64_t exact_additions(int64_t most) { return most ? 32767 / (2 * most) : 32767; }

template <int kRows>
void codes_rows(const IntegerTile& tile, const uint8_t* panel, const int8_t* x, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  const int64_t step = 32 * exact_additions(tile.most);
  __m256i totals[kRows][4] = {};
  for (int64_t k = 0; k < tile.width;) {
    const int64_t end = tile.width - k > step ? k + step : tile.width;
    __m256i parts[kRows][4] = {};
    for (; k < end; k += 32) {
      __m256i codes[4];
      for (int c = 0; c < 4; ++c) codes[c] = load_codes(panel + c * tile.stride + k);
      for (int r = 0; r < kRows; ++r) {
        const __m256i row = load_codes(x + r * tile.width + k);
        for (int c = 0; c < 4; ++c)
          parts[r][c] = _mm256_add_epi16(parts[r][c], _mm256_maddubs_epi16(codes[c], row));
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < 4; ++c)
        totals[r][c] = _mm256_add_epi32(totals[r][c], _mm256_madd_epi16(parts[r][c], ones));
  }
  for (int r = 0; r < kRows; ++r)
    store_sums(sums + r * kPanel, reduce(totals[r][0], totals[r][1], totals[r][2], totals[r][3]));
}

// int8 times int8 in int16: two products of at most 2^14 each are far from int32's end.
template <int kRows>
void int8_rows(const IntegerTile& tile, const int16_t* panel, const int8_t* x, int32_t* sums) {
  __m256i totals[kRows][4] = {};
  for (int64_t k = 0; k < tile.width; k += 16) {
    __m256i codes[4];
    for (int c = 0; c < 4; ++c) codes[c] = load_codes(panel + c * tile.stride + k);
    for (int r = 0; r < kRows; ++r) {
      const __m256i row = widened(x + r * tile.width + k);
      for (int c = 0; c < 4; ++c)
        totals[r][c] = _mm256_add_epi32(totals[r][c], _mm256_madd_epi16(codes[c], row));
    }
  }
  for (int r = 0; r < kRows; ++r)
    store_sums(sums + r * kPanel, reduce(totals[r][0], totals[r][1], totals[r][2], totals[r][3]));
}

// By two rows of x at a time, with the functions above for two and for one.
template <class Code, auto two_rows, auto one_row>
void multiply(const IntegerTile& tile, int32_t* sums) {
  const Code* panel = static_cast<const Code*>(tile.panel);
  for (int64_t m = 0; m < tile.rows; m += 2)
    for (int c = 0; c < tile.columns; c += 4) {
      const Code* from = panel + c * tile.stride;
      const int8_t* x = tile.x + m * tile.width;
      int32_t* to = sums + m * kPanel + c;
      if (m + 1 < tile.rows) two_rows(tile, from, x, to);
      else one_row(tile, from, x, to);
    }
}

void hold_int8(const int8_t* codes, int64_t width, void* panel) {
  int16_t* to = static_cast<int16_t*>(panel);
  for (int64_t k = 0; k < width; ++k) to[k] = codes[k];
}

}  // namespace

namespace questtrain::cpu {

const Kernels kAvx2 = {"avx2", unpack, centre, examine, 2, 0, hold_int8,
                       multiply<uint8_t, codes_rows<2>, codes_rows<1>>,
                       multiply<int16_t, int8_rows<2>, int8_rows<1>>,
                       scale, rotate, multiply_floats, quantize_row, rotate_back, dequantize_row};

}  // namespace questtrain::cpu
