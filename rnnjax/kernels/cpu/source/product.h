// The two matrix products of a recurrent layer, on pieces: a piece is [rows][lanes], so that its rows are next to each
// other whatever the sizes, every offset in an inner loop is a constant, and the elementwise program runs over it as it is.
#pragma once

#include "interface.h"
#include "vector.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// Tiles that leave registers for the operands: 32 of them with 512 bits, else 16.
constexpr int TILE_ROWS = 6;
constexpr int TILE_VECTORS = RNNJAX_BYTES == 64 ? 4 : 2;

// Part of a left operand: `count` pieces at `base + offsets[]`, of which `width` lanes count. An operand is two parts: its
// whole pieces, then the one that is not.
template <class E>
struct Pieces {
  const E* base;
  const int64_t* offsets;
  int64_t count;
  int width;
};

template <class E, int ROWS, int VECTORS>
inline void multiply_piece(V<E> (&sum)[ROWS][VECTORS], const E* a, const E* panel, int width) {
  constexpr int L = Vector<E>::lanes;
  for (int k = 0; k < width; ++k) {
    V<E> b[VECTORS];
    for (int v = 0; v < VECTORS; ++v) b[v] = load(panel + (k * VECTORS + v) * L);
    for (int r = 0; r < ROWS; ++r) {
      const V<E> left = splat<E>(a[r * L + k]);
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += left * b[v];
    }
  }
}

template <class E, int ROWS, int VECTORS>
inline const E* multiply_operand(const Pieces<E>* parts, int64_t row, const E* panel, E* const* out) {
  constexpr int L = Vector<E>::lanes;
  V<E> sum[ROWS][VECTORS] = {};
  for (int part = 0; part < 2; ++part) {
    const Pieces<E>& pieces = parts[part];
    for (int64_t piece = 0; piece < pieces.count; ++piece) {
      const E* a = pieces.base + pieces.offsets[piece] + row * L;
      if (pieces.width == L) {
        multiply_piece<E, ROWS, VECTORS>(sum, a, panel, L);
        panel += L * VECTORS * L;
      } else {
        multiply_piece<E, ROWS, VECTORS>(sum, a, panel, pieces.width);
        panel += pieces.width * VECTORS * L;
      }
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) {
      E* to = out[v] + (row + r) * L;
      store(to, load(to) + sum[r][v]);
    }
  return panel;
}

// out[v][row] += sum over k of a[row][k] * panel[k][v], for ROWS rows and each of the operands a; `panel` runs through
// the pieces' lanes in order. Each sum starts from zero: a shorter chain of roundings than one that goes on.
template <class E, int ROWS, int VECTORS>
void multiply(const Pieces<E>* parts, int operands, int64_t row, const E* panel, E* const* out) {
  for (int operand = 0; operand < operands; ++operand)
    panel = multiply_operand<E, ROWS, VECTORS>(parts + 2 * operand, row, panel, out);
}

template <class E, int VECTORS>
inline void multiply_rows(const Pieces<E>* parts, int operands, int64_t row, int rows, const E* panel, E* const* out) {
  switch (rows) {
    case 1: return multiply<E, 1, VECTORS>(parts, operands, row, panel, out);
    case 2: return multiply<E, 2, VECTORS>(parts, operands, row, panel, out);
    case 3: return multiply<E, 3, VECTORS>(parts, operands, row, panel, out);
    case 4: return multiply<E, 4, VECTORS>(parts, operands, row, panel, out);
    case 5: return multiply<E, 5, VECTORS>(parts, operands, row, panel, out);
    case 6: return multiply<E, 6, VECTORS>(parts, operands, row, panel, out);
  }
}

// The same for `rows` rows, in tiles of nearly equal height, and 1 to TILE_VECTORS vectors.
template <class E>
void multiply_all(const Pieces<E>* parts, int operands, int64_t rows, const E* panel, E* const* out, int vectors) {
  const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = rows * tile / tiles;
    const int height = int(rows * (tile + 1) / tiles - row);
    switch (vectors) {
      case 1: multiply_rows<E, 1>(parts, operands, row, height, panel, out); break;
      case 2: multiply_rows<E, 2>(parts, operands, row, height, panel, out); break;
#if RNNJAX_BYTES == 64
      case 3: multiply_rows<E, 3>(parts, operands, row, height, panel, out); break;
      case 4: multiply_rows<E, 4>(parts, operands, row, height, panel, out); break;
#endif
    }
  }
}

// sums[m][v] += sum over rows of a[row][m] * d[v][row], for HEIGHT m: a product whose sum runs over the rows.
template <class E, int HEIGHT, int VECTORS>
void correlate(const E* a, const E* const* d, int64_t rows, E* sums) {
  constexpr int L = Vector<E>::lanes;
  V<E> sum[HEIGHT][VECTORS] = {};
  const E* right[VECTORS];
  for (int v = 0; v < VECTORS; ++v) right[v] = d[v];
  for (int64_t row = 0; row < rows; ++row) {
    V<E> b[VECTORS];
    for (int v = 0; v < VECTORS; ++v) b[v] = load(right[v] + row * L);
    for (int m = 0; m < HEIGHT; ++m) {
      const V<E> left = splat<E>(a[row * L + m]);
      for (int v = 0; v < VECTORS; ++v) sum[m][v] += left * b[v];
    }
  }
  for (int m = 0; m < HEIGHT; ++m)
    for (int v = 0; v < VECTORS; ++v) {
      E* to = sums + (m * VECTORS + v) * L;
      store(to, load(to) + sum[m][v]);
    }
}

template <class E, int VECTORS>
inline void correlate_height(const E* a, const E* const* d, int64_t rows, E* sums, int height) {
  switch (height) {
    case 1: return correlate<E, 1, VECTORS>(a, d, rows, sums);
    case 2: return correlate<E, 2, VECTORS>(a, d, rows, sums);
    case 3: return correlate<E, 3, VECTORS>(a, d, rows, sums);
    case 4: return correlate<E, 4, VECTORS>(a, d, rows, sums);
    case 5: return correlate<E, 5, VECTORS>(a, d, rows, sums);
    case 6: return correlate<E, 6, VECTORS>(a, d, rows, sums);
  }
}

// The same for the first `width` lanes of a piece; `sums` is [width][vectors][lanes].
template <class E>
void correlate_piece(const E* a, int width, const E* const* d, int vectors, int64_t rows, E* sums) {
  constexpr int L = Vector<E>::lanes;
  const int tiles = (width + TILE_ROWS - 1) / TILE_ROWS;
  for (int tile = 0; tile < tiles; ++tile) {
    const int m = width * tile / tiles, height = width * (tile + 1) / tiles - m;
    E* to = sums + m * vectors * L;
    switch (vectors) {
      case 1: correlate_height<E, 1>(a + m, d, rows, to, height); break;
      case 2: correlate_height<E, 2>(a + m, d, rows, to, height); break;
#if RNNJAX_BYTES == 64
      case 3: correlate_height<E, 3>(a + m, d, rows, to, height); break;
      case 4: correlate_height<E, 4>(a + m, d, rows, to, height); break;
#endif
    }
  }
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
