// The path of CPUs with AVX-512 and its VNNI, compiled for those (kernels_avx2.cpp says what that
// asks of it). vpdpbusd adds four products of an unsigned and a signed byte to an int32, exactly.
#include "kernels.h"
#include "kernels_x86.inc"

namespace {

constexpr int kLanes = 16, kFewRows = 8, kOuterRows = 14;
typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats to_floats(const int8_t* codes) {
  const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen));
}

}  // namespace

#include "kernels.inc"
#include "rows.inc"

namespace {

inline __m256i halved(__m512i value) {
  return _mm256_add_epi32(_mm512_castsi512_si256(value), _mm512_extracti64x4_epi64(value, 1));
}

template <bool kPart>
inline __m512i load_codes(const void* from, __mmask64 mask) {
  return kPart ? _mm512_maskz_loadu_epi8(mask, from) : _mm512_loadu_si512(from);
}

// 64 places from k on, or those of the mask.
template <int kRows, bool kPart>
inline void add_products(const IntegerTile& tile, const uint8_t* panel, const int8_t* x, int64_t k,
                         __mmask64 mask, __m512i (&totals)[kRows][4]) {
  __m512i codes[4];
  for (int c = 0; c < 4; ++c) codes[c] = load_codes<kPart>(panel + c * tile.stride + k, mask);
  for (int r = 0; r < kRows; ++r) {
    const __m512i row = load_codes<kPart>(x + r * tile.width + k, mask);
    for (int c = 0; c < 4; ++c)
      totals[r][c] = _mm512_dpbusd_epi32(totals[r][c], codes[c], row);
  }
}

template <int kRows>
void rows_of(const IntegerTile& tile, const uint8_t* panel, const int8_t* x, int32_t* sums) {
  __m512i totals[kRows][4] = {};
  int64_t k = 0;
  for (; k + 64 <= tile.width; k += 64)
    add_products<kRows, false>(tile, panel, x, k, 0, totals);
  if (k < tile.width) {
    const __mmask64 rest = (__mmask64{1} << (tile.width - k)) - 1;
    add_products<kRows, true>(tile, panel, x, k, rest, totals);
  }
  for (int r = 0; r < kRows; ++r)
    store_sums(sums + r * kPanel, reduce(halved(totals[r][0]), halved(totals[r][1]),
                                         halved(totals[r][2]), halved(totals[r][3])));
}

constexpr int kTogether = 4;

void multiply(const IntegerTile& tile, int32_t* sums) {
  const uint8_t* panel = static_cast<const uint8_t*>(tile.panel);
  for (int64_t m = 0; m < tile.rows; m += kTogether)
    for (int c = 0; c < tile.columns; c += 4) {
      const uint8_t* from = panel + c * tile.stride;
      const int8_t* x = tile.x + m * tile.width;
      int32_t* to = sums + m * kPanel + c;
      switch (tile.rows - m) {
        case 1: rows_of<1>(tile, from, x, to); break;
        case 2: rows_of<2>(tile, from, x, to); break;
        case 3: rows_of<3>(tile, from, x, to); break;
        default: rows_of<kTogether>(tile, from, x, to);
      }
    }
}

// 128 more makes an int8 an unsigned byte.
void hold_int8(const int8_t* codes, int64_t width, void* panel) {
  uint8_t* to = static_cast<uint8_t*>(panel);
  for (int64_t k = 0; k < width; ++k) to[k] = static_cast<uint8_t>(codes[k] + 128);
}

}  // namespace

namespace questtrain::cpu {

const Kernels kAvx512Vnni = {
    "avx512-vnni", unpack, centre, examine, 1, 128, hold_int8, multiply, multiply,
    scale, rotate, multiply_floats, quantize_row, rotate_back, dequantize_row};

}  // namespace questtrain::cpu
