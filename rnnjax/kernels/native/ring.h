// The ring: what a tile leaves of its last steps for the products that need no order in time.
#pragma once

#include "layout.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// Gate cotangents are gathered in about this many rows, beside what they are to be multiplied with.
constexpr int64_t RING_ROWS = 256;

// A row is one step of one sequence. Arrays are stored in pieces: `d` by lanes, for products that sum over pre-activations,
// the others by rows, for products that sum over rows. Where a factor is one number, not a pair, the two layouts are equal.
template <class Stored>
struct Ring {
  using E = Computed<Stored>;
  using A = Factor<Stored>;
  static constexpr int L = Vector<E>::lanes;
  const Layout<E>& layout;
  int64_t rows;
  A *d, *d_by_row, *h, *x, *ones;  // cotangents of all pre-activations, the state before, the input
  int64_t* step;        // of which step of [S B T] a row is
  int64_t *recurrent_offsets, *input_offsets;

  Ring(const Layout<E>& layout, const Backward& call, int64_t tile_rows, Carver& carver) : layout(layout) {
    const Shape& shape = layout.shape;
    rows = ring_rows(shape, tile_rows);
    d = d_by_row = carver.carve<A>(layout.blocks * shape.C * size());
    if (EACH<A> > 1) d_by_row = carver.carve<A>(layout.blocks * shape.C * size());
    h = carver.carve<A>(layout.blocks * size());
    x = carver.carve<A>(call.dW ? layout.input_pieces * size() : 0);
    ones = carver.carve<A>(call.db ? size() : 0);
    step = carver.carve<int64_t>(rows);
    recurrent_offsets = carver.carve<int64_t>(layout.head_blocks * layout.recurrent.count);
    input_offsets = carver.carve<int64_t>(layout.blocks * layout.input.count);
    if (!carver.memory) return;
    for (int64_t row = 0; call.db && row < rows; ++row) put_row(ones, row, L, splat(E(1)));
    offsets_of(layout.recurrent, layout.head_blocks, recurrent_offsets);
    offsets_of(layout.input, layout.blocks, input_offsets);
  }

  static int64_t ring_rows(const Shape& shape, int64_t tile_rows) {
    return ceiling(least(tile_rows * shape.T, most(RING_ROWS / tile_rows, 1) * tile_rows), EACH<A>) * EACH<A>;
  }

  int64_t size() const { return rows * ROW<A>; }  // of a piece
  int64_t offset(int64_t block, int64_t pre_activation) const { return (block * layout.shape.C + pre_activation) * size(); }
  void offsets_of(const Fill& fill, int64_t blocks, int64_t* offsets) const {
    for (int64_t block = 0; block < blocks; ++block)
      for (int k = 0; k < fill.count; ++k) *offsets++ = offset(block, fill.pre_activations[k]);
  }

  // What is put there, from row `first` on: cotangents of one pre-activation of one block, a row of a block's h, or of a
  // piece of x.
  void put_d(int64_t block, int64_t pre_activation, int64_t first, const E* from, int64_t count) const {
    const int64_t at = offset(block, pre_activation);
    for (int64_t row = 0; row < count; ++row) {
      const V<E> value = load_part(from + row * L, layout.width(block));
      put_lanes(d + at + (first + row) * ROW<A>, value);
      if (EACH<A> > 1) put_row(d_by_row + at, first + row, L, value);
    }
  }
  void put_h(int64_t block, int64_t row, V<E> value) const { put_row(h + block * size(), row, L, as_factor<Stored>(value)); }
  void put_x(int64_t piece, int64_t row, V<E> value) const { put_row(x + piece * size(), row, L, value); }

  // The cotangents of a head's pre-activations as the left operand of a product, from one row on.
  void parts_of_recurrent(Pieces<A>* parts, int64_t start, int64_t row) const {
    parts_of(layout.recurrent, d + offset(start, 0) + row * ROW<A>, recurrent_offsets, parts);
  }
  void parts_of_input(Pieces<A>* parts, int64_t start) const {
    parts_of(layout.input, d, input_offsets + start * layout.input.count, parts);
  }
  void parts_of(const Fill& fill, const A* base, const int64_t* offsets, Pieces<A>* parts) const {
    const int64_t D = layout.shape.D, whole = D / L * fill.count, all = layout.head_blocks * fill.count;
    parts[0] = {base, offsets, whole, ROW<A>};
    parts[1] = {base, offsets + whole, all - whole, factors<A>(int(D % L))};
  }

  // sums += left^T d, over `filled` rows, for the vectors of one panel of `to`.
  void add_weight_gradient(const Fill& fill, int64_t first, int vectors, const A* left, int64_t depth, int64_t filled,
                       E* to) const {
    const A* right[MOST_VECTORS];
    for (int v = 0; v < vectors; ++v)
      right[v] = d_by_row + offset((first + v) / fill.count, fill.pre_activations[(first + v) % fill.count]);
    E* panel = to + first * depth * L;
    for (int64_t m = 0; m < depth; m += L)
      multiply_transposed_piece(left + m / L * size(), int(least(L, depth - m)), right, vectors, factors<A>(filled),
                      panel + m * vectors * L);
  }
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
