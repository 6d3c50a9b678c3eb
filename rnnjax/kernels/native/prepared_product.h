// Products with prepared weights, which are widened where they are read: a few rows, so that memory is the limit.
#pragma once

#if RNNJAX_BYTES > 16
#include <immintrin.h>
#endif

#include "interface.h"
#include "vector.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// As many numbers as a vector of E has lanes, from whatever they are stored as. Double precision is not made for speed.
template <class Stored>
inline V<double> widened(const Stored* from, double) {
  V<double> value;
  for (int lane = 0; lane < Vector<double>::lanes; ++lane) value[lane] = number(from[lane]);
  return value;
}
inline V<double> widened(const double* from, double) { return load(from); }
inline V<float> widened(const float* from, float) { return load(from); }
#if RNNJAX_BYTES == 64  // GCC 12 converts several times slower by itself, and warns of some intrinsics without masks
inline V<float> widened(const Bfloat16* from, float) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (V<float>)((M<float>)_mm512_maskz_cvtepu16_epi32(0xffff, halves) << 16);
}
inline V<float> widened(const int8_t* from, float) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return __builtin_convertvector((M<float>)_mm512_maskz_cvtepi8_epi32(0xffff, bytes), V<float>);
}
#elif RNNJAX_BYTES == 32
inline V<float> widened(const Bfloat16* from, float) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (V<float>)((M<float>)_mm256_cvtepu16_epi32(halves) << 16);
}
inline V<float> widened(const int8_t* from, float) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return __builtin_convertvector((M<float>)_mm256_cvtepi8_epi32(bytes), V<float>);
}
#else
inline V<float> widened(const Bfloat16* from, float) { return load_part(from, Vector<float>::lanes); }
inline V<float> widened(const int8_t* from, float) {
  M<float> integers = {};
  for (int lane = 0; lane < Vector<float>::lanes; ++lane) integers[lane] = from[lane];
  return __builtin_convertvector(integers, V<float>);
}
#endif

// Of one block, the sums over k < depth of rows[r][k] * panel[k][first + v], for ROWS rows and VECTORS vectors; a row of
// the panel is `stride` numbers. Few sums are split in two or more, or each addition would wait for the one before.
template <class Stored, class E, int ROWS, int VECTORS, class Put>
inline void prepared_sums(const Stored* panel, int64_t stride, int64_t depth, const E* const* rows, Put put) {
  constexpr int L = Vector<E>::lanes, CHAINS = ROWS * VECTORS >= 8 ? 1 : 8 / (ROWS * VECTORS);
  V<E> sum[CHAINS][ROWS][VECTORS] = {};
  const E* left[ROWS];
  for (int r = 0; r < ROWS; ++r) left[r] = rows[r];
  const auto add = [&](int64_t k, int chain) {
    for (int v = 0; v < VECTORS; ++v) {
      const V<E> right = widened(panel + k * stride + v * L, E());
      for (int r = 0; r < ROWS; ++r) sum[chain][r][v] += splat<E>(left[r][k]) * right;
    }
  };
  int64_t k = 0;
  for (; k + CHAINS <= depth; k += CHAINS)
    for (int chain = 0; chain < CHAINS; ++chain) add(k + chain, chain);
  for (; k < depth; ++k) add(k, 0);
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) {
      for (int chain = 1; chain < CHAINS; ++chain) sum[0][r][v] += sum[chain][r][v];
      put(r, v, sum[0][r][v]);
    }
}

// The same for any number of rows and vectors: put(row, vector, sum).
template <class Stored, class E, int ROWS, class Put>
inline void prepared_rows(const Stored* panel, int64_t vectors, int64_t depth, const E* const* rows, int64_t row, Put put) {
  constexpr int L = Vector<E>::lanes;
  for (int64_t first = 0; first < vectors; first += 4) {
    const auto at = [&](int r, int v, V<E> sum) { put(row + r, first + v, sum); };
    switch (vectors - first) {
      case 1: prepared_sums<Stored, E, ROWS, 1>(panel + first * L, vectors * L, depth, rows + row, at); break;
      case 2: prepared_sums<Stored, E, ROWS, 2>(panel + first * L, vectors * L, depth, rows + row, at); break;
      case 3: prepared_sums<Stored, E, ROWS, 3>(panel + first * L, vectors * L, depth, rows + row, at); break;
      default: prepared_sums<Stored, E, ROWS, 4>(panel + first * L, vectors * L, depth, rows + row, at);
    }
  }
}
template <class Stored, class E, class Put>
inline void prepared_product(const Stored* panel, int64_t vectors, int64_t depth, const E* const* rows, int64_t count,
                             Put put) {
  constexpr int64_t TOGETHER = RNNJAX_BYTES == 64 ? 4 : 2;
  int64_t row = 0;
  for (; row + TOGETHER <= count; row += TOGETHER)
    prepared_rows<Stored, E, TOGETHER>(panel, vectors, depth, rows, row, put);
  for (; row < count; ++row) prepared_rows<Stored, E, 1>(panel, vectors, depth, rows, row, put);
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
