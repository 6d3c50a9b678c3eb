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

// The sums of a tile leave registers for the operands: there are 32 of them with 512 bits, else 16.
constexpr int MOST_VECTORS = RNNJAX_BYTES == 64 ? 4 : 2;
constexpr int tallest(int vectors) { return RNNJAX_BYTES == 64 && vectors <= 3 ? 8 : 6; }

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

template <class A, int VECTORS, int ROWS = tallest(VECTORS)>
inline void multiply_rows(const Pieces<A>* parts, int operands, int64_t row, int rows, const A* panel,
                          Sum<A>* const* out) {
  if (rows == ROWS) return multiply<A, ROWS, VECTORS>(parts, operands, row, panel, out);
  if constexpr (ROWS > 1) multiply_rows<A, VECTORS, ROWS - 1>(parts, operands, row, rows, panel, out);
}

// Calls act(first, height) for tiles that together are `count` high, as few as can be and of nearly equal height.
template <class Act>
inline void for_tiles(int64_t count, int vectors, Act act) {
  const int64_t most = tallest(vectors), tiles = (count + most - 1) / most;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = count * tile / tiles;
    act(first, int(count * (tile + 1) / tiles - first));
  }
}

// The same for `rows` rows, and 1 to MOST_VECTORS vectors.
template <class A>
void multiply_all(const Pieces<A>* parts, int operands, int64_t rows, const A* panel, Sum<A>* const* out, int vectors) {
  for_tiles(rows, vectors, [&](int64_t row, int height) {
    switch (vectors) {
      case 1: return multiply_rows<A, 1>(parts, operands, row, height, panel, out);
      case 2: return multiply_rows<A, 2>(parts, operands, row, height, panel, out);
#if RNNJAX_BYTES == 64
      case 3: return multiply_rows<A, 3>(parts, operands, row, height, panel, out);
      case 4: return multiply_rows<A, 4>(parts, operands, row, height, panel, out);
#endif
    }
  });
}

// sums[m][v] += sum over rows of a[row][m] * d[v][row], for HEIGHT m: a product whose sum runs over the rows, which
// are `rows` rows of factors.
template <class A, int HEIGHT, int VECTORS>
void multiply_transposed(const A* a, const A* const* d, int64_t rows, Sum<A>* sums) {
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

template <class A, int VECTORS, int HEIGHT = tallest(VECTORS)>
inline void multiply_transposed_height(const A* a, const A* const* d, int64_t rows, Sum<A>* sums, int height) {
  if (height == HEIGHT) return multiply_transposed<A, HEIGHT, VECTORS>(a, d, rows, sums);
  if constexpr (HEIGHT > 1) multiply_transposed_height<A, VECTORS, HEIGHT - 1>(a, d, rows, sums, height);
}

// The same for the first `width` lanes of a piece; `sums` is [width][vectors][lanes].
template <class A>
void multiply_transposed_piece(const A* a, int width, const A* const* d, int vectors, int64_t rows, Sum<A>* sums) {
  constexpr int L = Vector<A>::lanes;
  for_tiles(width, vectors, [&](int64_t m, int height) {
    Sum<A>* to = sums + m * vectors * L;
    switch (vectors) {
      case 1: return multiply_transposed_height<A, 1>(a + m, d, rows, to, height);
      case 2: return multiply_transposed_height<A, 2>(a + m, d, rows, to, height);
#if RNNJAX_BYTES == 64
      case 3: return multiply_transposed_height<A, 3>(a + m, d, rows, to, height);
      case 4: return multiply_transposed_height<A, 4>(a + m, d, rows, to, height);
#endif
    }
  });
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
