// Weights in the order in which the products read them, packed once per call.
#pragma once

#include "layout.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// Vectors (block, pre-activation) are numbered block by block. A group of `vectors` of them from number `first` on is one
// panel, [depth][vectors][lanes], which starts at first * depth * lanes.
template <class A>
inline A* panel_of(A* panels, int64_t first, int64_t depth) {
  return panels + first * depth * Vector<std::remove_const_t<A>>::lanes;
}

// Calls act(first number, vectors) for the panels of `blocks` blocks from `block` on, so many vectors each: as few as
// can be of at most `widest` vectors, and of nearly equal width.
template <class Act>
inline void for_panels(int64_t widest, int64_t block, int64_t blocks, int64_t pre_activations, Act act) {
  const int64_t begin = block * pre_activations, count = blocks * pre_activations, panels = ceiling(count, widest);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = count * panel / panels;
    act(begin + first, int(count * (panel + 1) / panels - first));
  }
}

// A panel of the forward products: rows of W, then rows of R, as `fill` asks.
template <class E, class Stored, class A>
void pack_panel(const Layout<E>& layout, const Fill& fill, const Stored* W, const Stored* R, int64_t first, int vectors,
                A* to) {
  constexpr int L = Vector<E>::lanes;
  const Shape& shape = layout.shape;
  for (int v = 0; v < vectors; ++v) {
    const int64_t block = (first + v) / fill.count;
    const int64_t gate = layout.pre_activations[fill.pre_activations[(first + v) % fill.count]].gate;
    const int width = layout.width(block);
    A* out = to + v * L;
    if (fill.from_x) {
      const Stored* from = W + gate * layout.H + layout.first_unit(block);
      for (int64_t i = 0; i < shape.I; ++i) put_row(out, i, vectors * L, load_part(from + i * shape.G * layout.H, width));
      out += factors<A>(shape.I) * vectors * L;
    }
    if (fill.from_h) {
      const Stored* from = R + (layout.head(block) * shape.D * shape.G + gate) * shape.D + block % layout.head_blocks * L;
      for (int64_t p = 0; p < shape.D; ++p) put_row(out, p, vectors * L, load_part(from + p * shape.G * shape.D, width));
    }
  }
}

// Row k < depth of what is stored is from[lane * row + k] in `width` lanes, zero in the others.
template <class Stored, class A>
inline void transpose(A* to, int64_t stride, const Stored* from, int64_t row, int depth, int width) {
  Computed<Stored> numbers[Vector<A>::lanes] = {};
  for (int k = 0; k < depth; ++k) {
    for (int lane = 0; lane < width; ++lane) numbers[lane] = number(from[lane * row + k]);
    put_row(to, k, stride, load(numbers));
  }
}

// A panel of R transposed: from the recurrent pre-activations of a head, block by block, to the h of `vectors` blocks.
template <class E, class Stored, class A>
void pack_recurrent_transposed(const Layout<E>& layout, const Stored* R, int64_t first, int vectors, A* to) {
  constexpr int L = Vector<E>::lanes;
  const Shape& shape = layout.shape;
  const int64_t head = layout.head(first), start = head * layout.head_blocks;
  for (int64_t block = start; block < start + layout.head_blocks; ++block) {
    const int depth = layout.width(block);
    for (int c = 0; c < layout.recurrent.count; ++c, to += factors<A>(depth) * vectors * L) {
      const int64_t gate = layout.pre_activations[layout.recurrent.pre_activations[c]].gate;
      for (int v = 0; v < vectors; ++v) {
        const int64_t p = (first + v - start) * L;
        const Stored* from = R + ((head * shape.D + p) * shape.G + gate) * shape.D + (block - start) * L;
        transpose(to + v * L, int64_t(vectors) * L, from, shape.G * shape.D, depth, layout.width(first + v));
      }
    }
  }
}

// A panel of W transposed: from the input pre-activations of all blocks to `vectors` pieces of x.
template <class E, class Stored, class A>
void pack_input_transposed(const Layout<E>& layout, const Stored* W, int64_t first, int vectors, A* to) {
  constexpr int L = Vector<E>::lanes;
  const Shape& shape = layout.shape;
  for (int64_t block = 0; block < layout.blocks; ++block) {
    const int depth = layout.width(block);
    for (int c = 0; c < layout.input.count; ++c, to += factors<A>(depth) * vectors * L) {
      const int64_t gate = layout.pre_activations[layout.input.pre_activations[c]].gate;
      for (int v = 0; v < vectors; ++v) {
        const Stored* from = W + ((first + v) * L * shape.G + gate) * layout.H + layout.first_unit(block);
        transpose(to + v * L, int64_t(vectors) * L, from, shape.G * layout.H, depth, layout.input_width(first + v));
      }
    }
  }
}

// Vectors by block: of unit_parameters, or of initial states, [count H] to [count][block][lanes].
template <class E>
void pack_units(const Layout<E>& layout, const E* from, int64_t count, E* to) {
  constexpr int L = Vector<E>::lanes;
  for (int64_t k = 0; k < count; ++k)
    for (int64_t block = 0; block < layout.blocks; ++block, to += L)
      store(to, load_part(from + k * layout.H + layout.first_unit(block), layout.width(block)));
}

// The bias by block and pre-activation, zero where the pre-activation takes no input: [block][C][lanes].
template <class E, class Stored>
void pack_bias(const Layout<E>& layout, const Stored* b, E* to) {
  constexpr int L = Vector<E>::lanes;
  for (int64_t block = 0; block < layout.blocks; ++block)
    for (int64_t c = 0; c < layout.shape.C; ++c, to += L) {
      const PreActivation& pre_activation = layout.pre_activations[c];
      const Stored* from = b + pre_activation.gate * layout.H + layout.first_unit(block);
      store(to, pre_activation.input ? load_part(from, layout.width(block)) : V<E>{});
    }
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
