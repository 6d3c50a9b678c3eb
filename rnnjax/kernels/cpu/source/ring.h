// The ring: what a tile leaves of its last steps for the products that need no order in time.
#pragma once

#include "layout.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// Gate cotangents are gathered in about this many rows, beside what they are to be multiplied with.
constexpr int64_t RING_ROWS = 256;

// A row is one step of one sequence. All is in pieces, [rows][lanes].
template <class E>
struct Ring {
  static constexpr int L = Vector<E>::lanes;
  const Layout<E>& layout;
  int64_t rows;
  E *d, *h, *x, *ones;  // cotangents of all columns, the state before, the input
  int64_t* step;        // of which step of [S B T] a row is
  int64_t *recurrent_offsets, *input_offsets;

  Ring(const Layout<E>& layout, const Backward& call, int64_t tile_rows, Carver& carver) : layout(layout) {
    const Shape& shape = layout.shape;
    rows = ring_rows(shape, tile_rows);
    d = carver.carve<E>(layout.blocks * shape.C * rows * L);
    h = carver.carve<E>(layout.blocks * rows * L);
    x = carver.carve<E>(call.dW ? layout.input_pieces * rows * L : 0);
    ones = carver.carve<E>(call.db ? rows * L : 0);
    step = carver.carve<int64_t>(rows);
    recurrent_offsets = carver.carve<int64_t>(layout.head_blocks * layout.recurrent.count);
    input_offsets = carver.carve<int64_t>(layout.blocks * layout.input.count);
    if (!carver.memory) return;
    if (call.db) fill(ones, splat(E(1)), rows);
    offsets_of(layout.recurrent, layout.head_blocks, recurrent_offsets);
    offsets_of(layout.input, layout.blocks, input_offsets);
  }

  static int64_t ring_rows(const Shape& shape, int64_t tile_rows) {
    return least(tile_rows * shape.T, most(RING_ROWS / tile_rows, 1) * tile_rows);
  }

  int64_t offset(int64_t block, int64_t column) const { return (block * layout.shape.C + column) * rows * L; }
  void offsets_of(const Fill& fill, int64_t blocks, int64_t* offsets) const {
    for (int64_t block = 0; block < blocks; ++block)
      for (int k = 0; k < fill.count; ++k) *offsets++ = offset(block, fill.columns[k]);
  }

  // The cotangents of a head's columns as the left operand of a product, from one row on.
  void parts_of_recurrent(Pieces<E>* parts, int64_t start, int64_t row) const {
    parts_of(layout.recurrent, d + offset(start, 0) + row * L, recurrent_offsets, parts);
  }
  void parts_of_input(Pieces<E>* parts, int64_t start) const {
    parts_of(layout.input, d, input_offsets + start * layout.input.count, parts);
  }
  void parts_of(const Fill& fill, const E* base, const int64_t* offsets, Pieces<E>* parts) const {
    const int64_t D = layout.shape.D, whole = D / L * fill.count, all = layout.head_blocks * fill.count;
    parts[0] = {base, offsets, whole, L};
    parts[1] = {base, offsets + whole, all - whole, int(D % L)};
  }

  // sums += left^T d, over `filled` rows, for the vectors of one panel of `to`.
  void correlate_panel(const Fill& fill, int64_t first, int vectors, const E* left, int64_t depth, int64_t filled, E* to) const {
    const E* right[TILE_VECTORS];
    for (int v = 0; v < vectors; ++v)
      right[v] = d + offset((first + v) / fill.count, fill.columns[(first + v) % fill.count]);
    E* panel = to + first * depth * L;
    for (int64_t m = 0; m < depth; m += L)
      correlate_piece(left + m * rows, int(least(L, depth - m)), right, vectors, filled, panel + m * vectors * L);
  }
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
