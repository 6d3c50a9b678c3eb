// The two matrix products of a recurrent layer, on pieces: a piece is [rows][lanes], so that its rows are next to each
// other whatever the sizes, every offset in an inner loop is a constant, and the elementwise program runs over it as it is.
#pragma once

#if RNNJAX_PAIRS
#include <immintrin.h>
#endif

#include "interface.h"
#include "vector.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// Tiles that leave registers for the operands: 32 of them with 512 bits, else 16.
constexpr int TILE_ROWS = 6;
constexpr int TILE_VECTORS = RNNJAX_BYTES == 64 ? 4 : 2;

// What is multiplied: numbers; or pairs of bfloat16, the first in the lower half, by the processors that add both products
// of a pair to a float at once. So the numbers that a sum runs over come in pairs, and what is stored by lanes for one
// product is stored by rows for another.
using Pair = uint32_t;
#if RNNJAX_PAIRS
template <class Stored>
using Factor = std::conditional_t<std::is_same_v<Stored, Bfloat16>, Pair, Stored>;
#else
template <class Stored>
using Factor = Computed<Stored>;
#endif
template <class A>
using Sum = std::conditional_t<std::is_same_v<A, Pair>, float, A>;
template <class A>
constexpr int EACH = std::is_same_v<A, Pair> ? 2 : 1;  // numbers in a factor
template <class A>
constexpr int ROW = Vector<A>::lanes / EACH<A>;  // factors in a row of a piece

// How many factors `numbers` numbers are; of an odd number of them the last is paired with zero.
template <class A, class Integer>
inline Integer factors(Integer numbers) {
  return (numbers + EACH<A> - 1) / EACH<A>;
}

template <class A>
inline V<Sum<A>> add_product(V<Sum<A>> sum, V<A> a, V<A> b) {
#if RNNJAX_PAIRS
  if constexpr (EACH<A> == 2) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  } else
#endif
    return sum + a * b;
}

// A number as a product sees it. A pair is rounded where it is made.
template <class Stored>
inline V<Computed<Stored>> as_factor(V<Computed<Stored>> value) {
  if constexpr (std::is_same_v<Stored, Bfloat16> && EACH<Factor<Stored>> == 1) {
    return rounded(value);
  } else {
    return value;
  }
}

// Stores a row of a piece, to be summed over its lanes. Lanes beyond the width must be zero: one of them may be in a pair.
template <class A>
inline void put_lanes(A* to, V<Sum<A>> value) {
  if constexpr (EACH<A> == 2) {
    store_part(reinterpret_cast<Bfloat16*>(to), value, Vector<A>::lanes);
  } else {
    store(to, value);
  }
}
// Stores row number `row` of those that are `stride` factors apart, to be summed over rows: each even one before the next.
template <class A>
inline void put_row(A* to, int64_t row, int64_t stride, V<Sum<A>> value) {
  A* at = to + row / EACH<A> * stride;
  if constexpr (EACH<A> == 2) {
    const V<A> bits = reinterpret_cast<V<A>>(rounded(value));
    store(at, row % 2 ? load(at) | bits : bits >> 16);
  } else {
    store(at, value);
  }
}

// Part of a left operand: `count` pieces at `base + offsets[]`, of which `width` factors of a row count. An operand is
// two parts: its whole pieces, then the one that is not.
template <class A>
struct Pieces {
  const A* base;
  const int64_t* offsets;
  int64_t count;
  int width;
};

template <class A, int ROWS, int VECTORS>
inline void multiply_piece(V<Sum<A>> (&sum)[ROWS][VECTORS], const A* a, const A* panel, int width) {
  constexpr int L = Vector<A>::lanes;
  for (int k = 0; k < width; ++k) {
    V<A> b[VECTORS];
    for (int v = 0; v < VECTORS; ++v) b[v] = load(panel + (k * VECTORS + v) * L);
    for (int r = 0; r < ROWS; ++r) {
      const V<A> left = splat<A>(a[r * ROW<A> + k]);
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = add_product<A>(sum[r][v], left, b[v]);
    }
  }
}

template <class A, int ROWS, int VECTORS>
inline const A* multiply_operand(const Pieces<A>* parts, int64_t row, const A* panel, Sum<A>* const* out) {
  constexpr int L = Vector<A>::lanes;
  V<Sum<A>> sum[ROWS][VECTORS] = {};
  for (int part = 0; part < 2; ++part) {
    const Pieces<A>& pieces = parts[part];
    for (int64_t piece = 0; piece < pieces.count; ++piece) {
      const A* a = pieces.base + pieces.offsets[piece] + row * ROW<A>;
      if (pieces.width == ROW<A>) {
        multiply_piece<A, ROWS, VECTORS>(sum, a, panel, ROW<A>);
        panel += ROW<A> * VECTORS * L;
      } else {
        multiply_piece<A, ROWS, VECTORS>(sum, a, panel, pieces.width);
        panel += pieces.width * VECTORS * L;
      }
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) {
      Sum<A>* to = out[v] + (row + r) * L;
      store(to, load(to) + sum[r][v]);
    }
  return panel;
}

// out[v][row] += sum over k of a[row][k] * panel[k][v], for ROWS rows and each of the operands a; `panel` runs through
// the pieces' factors in order. Each sum starts from zero: a shorter chain of roundings than one that goes on.
template <class A, int ROWS, int VECTORS>
void multiply(const Pieces<A>* parts, int operands, int64_t row, const A* panel, Sum<A>* const* out) {
  for (int operand = 0; operand < operands; ++operand)
    panel = multiply_operand<A, ROWS, VECTORS>(parts + 2 * operand, row, panel, out);
}

template <class A, int VECTORS>
inline void multiply_rows(const Pieces<A>* parts, int operands, int64_t row, int rows, const A* panel,
                          Sum<A>* const* out) {
  switch (rows) {
    case 1: return multiply<A, 1, VECTORS>(parts, operands, row, panel, out);
    case 2: return multiply<A, 2, VECTORS>(parts, operands, row, panel, out);
    case 3: return multiply<A, 3, VECTORS>(parts, operands, row, panel, out);
    case 4: return multiply<A, 4, VECTORS>(parts, operands, row, panel, out);
    case 5: return multiply<A, 5, VECTORS>(parts, operands, row, panel, out);
    case 6: return multiply<A, 6, VECTORS>(parts, operands, row, panel, out);
  }
}

// The same for `rows` rows, in tiles of nearly equal height, and 1 to TILE_VECTORS vectors.
template <class A>
void multiply_all(const Pieces<A>* parts, int operands, int64_t rows, const A* panel, Sum<A>* const* out, int vectors) {
  const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = rows * tile / tiles;
    const int height = int(rows * (tile + 1) / tiles - row);
    switch (vectors) {
      case 1: multiply_rows<A, 1>(parts, operands, row, height, panel, out); break;
      case 2: multiply_rows<A, 2>(parts, operands, row, height, panel, out); break;
#if RNNJAX_BYTES == 64
      case 3: multiply_rows<A, 3>(parts, operands, row, height, panel, out); break;
      case 4: multiply_rows<A, 4>(parts, operands, row, height, panel, out); break;
#endif
    }
  }
}

// sums[m][v] += sum over rows of a[row][m] * d[v][row], for HEIGHT m: a product whose sum runs over the rows, which
// are `rows` rows of factors.
template <class A, int HEIGHT, int VECTORS>
void correlate(const A* a, const A* const* d, int64_t rows, Sum<A>* sums) {
  constexpr int L = Vector<A>::lanes;
  V<Sum<A>> sum[HEIGHT][VECTORS] = {};
  const A* right[VECTORS];
  for (int v = 0; v < VECTORS; ++v) right[v] = d[v];
  for (int64_t row = 0; row < rows; ++row) {
    V<A> b[VECTORS];
    for (int v = 0; v < VECTORS; ++v) b[v] = load(right[v] + row * L);
    for (int m = 0; m < HEIGHT; ++m) {
      const V<A> left = splat<A>(a[row * L + m]);
      for (int v = 0; v < VECTORS; ++v) sum[m][v] = add_product<A>(sum[m][v], left, b[v]);
    }
  }
  for (int m = 0; m < HEIGHT; ++m)
    for (int v = 0; v < VECTORS; ++v) {
      Sum<A>* to = sums + (m * VECTORS + v) * L;
      store(to, load(to) + sum[m][v]);
    }
}

template <class A, int VECTORS>
inline void correlate_height(const A* a, const A* const* d, int64_t rows, Sum<A>* sums, int height) {
  switch (height) {
    case 1: return correlate<A, 1, VECTORS>(a, d, rows, sums);
    case 2: return correlate<A, 2, VECTORS>(a, d, rows, sums);
    case 3: return correlate<A, 3, VECTORS>(a, d, rows, sums);
    case 4: return correlate<A, 4, VECTORS>(a, d, rows, sums);
    case 5: return correlate<A, 5, VECTORS>(a, d, rows, sums);
    case 6: return correlate<A, 6, VECTORS>(a, d, rows, sums);
  }
}

// The same for the first `width` lanes of a piece; `sums` is [width][vectors][lanes].
template <class A>
void correlate_piece(const A* a, int width, const A* const* d, int vectors, int64_t rows, Sum<A>* sums) {
  constexpr int L = Vector<A>::lanes;
  const int tiles = (width + TILE_ROWS - 1) / TILE_ROWS;
  for (int tile = 0; tile < tiles; ++tile) {
    const int m = width * tile / tiles, height = width * (tile + 1) / tiles - m;
    Sum<A>* to = sums + m * vectors * L;
    switch (vectors) {
      case 1: correlate_height<A, 1>(a + m, d, rows, to, height); break;
      case 2: correlate_height<A, 2>(a + m, d, rows, to, height); break;
#if RNNJAX_BYTES == 64
      case 3: correlate_height<A, 3>(a + m, d, rows, to, height); break;
      case 4: correlate_height<A, 4>(a + m, d, rows, to, height); break;
#endif
    }
  }
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
