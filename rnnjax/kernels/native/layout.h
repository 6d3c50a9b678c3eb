// How a problem is laid out in scratch: hidden units in blocks of one vector, heads padded to whole blocks.
#pragma once

#include "gang.h"
#include "interface.h"
#include "product.h"
#include "program.h"
#include "vector.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

constexpr int64_t MANY_ROWS = 256;      // of a product that runs over time, too: about as many
constexpr int64_t MOST_ROWS = 32;       // of a tile: sequences that go through time together
constexpr int64_t PROGRAM_BYTES = 24 << 10;  // of the first-level cache, for a program's registers

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The largest number of vectors in a panel that is multiplied by this many rows. A panel does not fit in the first-level
// cache, so every tile of rows reads it from the second level again. A core that multiplies two vectors in a cycle waits for
// those reads. It takes tiles of 3 vectors and 8 rows in place of 4 and 6 if that saves more than a sixth of the tiles.
inline int64_t panel_vectors(const Processor& processor, int64_t rows) {
  if (RNNJAX_BYTES < 64 || processor.products < 2) return MOST_VECTORS;
  return 5 * ceiling(rows, tallest(4)) > 6 * ceiling(rows, tallest(3)) ? 3 : 4;
}

// Hands out pieces of one allocation; with no memory yet, it counts what will be needed.
struct Carver {
  char* memory;
  size_t used = 0;

  template <class T>
  T* carve(int64_t count) {
    T* result = memory ? reinterpret_cast<T*>(memory + used) : nullptr;
    used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return result;
  }
};

// The pre-activations that one product fills: from x, from h, or, where each of them takes both, from the two in one
// sweep.
struct Fill {
  int32_t pre_activations[MOST_PRE_ACTIVATIONS];
  int count;
  bool from_x, from_h;
};

template <class E>
struct Layout {
  static constexpr int L = Vector<E>::lanes;
  Shape shape;
  const PreActivation* pre_activations;
  int64_t H, head_blocks, blocks, input_pieces;
  Fill input, recurrent;
  bool joined;  // every pre-activation takes both products

  int64_t step_panel, sum_panel;  // the most vectors of a panel: for the rows of a step, and for many rows

  // `rows`: of a step, at most.
  Layout(const Problem& problem, int64_t rows) : shape(problem.shape), pre_activations(problem.pre_activations) {
    step_panel = panel_vectors(problem.processor, rows);
    sum_panel = panel_vectors(problem.processor, MANY_ROWS);
    H = shape.N * shape.D;
    head_blocks = ceiling(shape.D, L);
    blocks = shape.N * head_blocks;
    input_pieces = ceiling(shape.I, L);
    input.count = recurrent.count = 0;
    for (int64_t c = 0; c < shape.C; ++c) {
      if (pre_activations[c].input) input.pre_activations[input.count++] = int32_t(c);
      if (pre_activations[c].recurrent) recurrent.pre_activations[recurrent.count++] = int32_t(c);
    }
    joined = input.count == shape.C && recurrent.count == shape.C;
  }

  int width(int64_t block) const { return int(least(L, shape.D - block % head_blocks * L)); }
  int input_width(int64_t piece) const { return int(least(L, shape.I - piece * L)); }
  // How many blocks of a head run their program together: enough to fill a row of it, and the panels of a product.
  int64_t batch(int64_t step, int64_t rows) const {
    const int64_t C = most(1, shape.C), fewest = step_panel == 3 && C % 3 ? 3 : ceiling(step_panel, C);
    return least(head_blocks, most(fewest, step / (rows * L)));
  }
  int64_t head(int64_t block) const { return block / head_blocks; }
  int64_t first_unit(int64_t block) const { return head(block) * shape.D + block % head_blocks * L; }
};

// Sequences are dealt out to tiles like cards, longest first, so that all tiles have about the same work.
struct Tiles {
  int64_t count;  // of each group

  Tiles(const Shape& shape, int64_t threads) {
    const int64_t hands = most(1, least(ceiling(threads, shape.S), shape.B / 2));
    count = ceiling(ceiling(shape.B, MOST_ROWS), hands) * hands;
  }
  int64_t rows(const Shape& shape, int64_t tile) const { return (shape.B - tile + count - 1) / count; }
};

// A step is shared by several cores where tiles are too few for them, down to so many multiplications for each: with
// fewer, a core has done its part before the other has heard of it.
constexpr int64_t SHARED_WORK = 16384;

template <class E>
inline int64_t sharers(const Layout<E>& layout, const Tiles& tiles, int64_t threads) {
  const Shape& shape = layout.shape;
  const int64_t work = tiles.rows(shape, 0) * layout.H * shape.D * layout.recurrent.count;
  const int64_t idle = threads / most(1, shape.S * tiles.count);
  return most(1, least(least(idle, Gang::MOST), least(work / SHARED_WORK, layout.blocks)));
}

// About how many nanoseconds it takes to go once through all steps, and to pack the weights of one group.
template <class E>
inline int64_t steps_work(const Layout<E>& layout) {
  const Shape& shape = layout.shape;
  const int64_t products = shape.I * layout.input.count + shape.D * layout.recurrent.count;
  return shape.S * shape.B * shape.T * layout.H * (shape.C + products * int64_t(sizeof(E)) / (2 * RNNJAX_BYTES));
}
template <class E>
inline int64_t weights_work(const Layout<E>& layout) {
  const Shape& shape = layout.shape;
  return layout.H * (shape.I * layout.input.count + shape.D * layout.recurrent.count) / 2;
}

// The sequences of one tile.
struct Rows {
  int64_t count, longest;
  int64_t sequence[MOST_ROWS], length[MOST_ROWS];  // the row of [S B]; longest first

  Rows(const Problem& problem, int64_t group, int64_t tile, const Tiles& tiles) {
    const Shape& shape = problem.shape;
    count = tiles.rows(shape, tile);
    for (int64_t row = 0; row < count; ++row) {
      const int64_t place = group * shape.B + tile + row * tiles.count;
      sequence[row] = problem.order ? problem.order[place] : place;
      length[row] = problem.length ? problem.length[sequence[row]] : shape.T;
    }
    longest = count ? length[0] : 0;
  }
  int64_t active(int64_t t) const {  // rows that still run at step t
    int64_t rows = count;
    while (rows && length[rows - 1] <= t) --rows;
    return rows;
  }
};

template <class E>
inline const E* group_of(const Shared& shared, int64_t group) {
  return static_cast<const E*>(shared.data) + group * shared.stride;
}

template <class E>
inline void fill(E* to, V<E> value, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) store(to + row * Vector<E>::lanes, value);
}
template <class E>
inline void clear(E* to, int64_t count) {
  memset(to, 0, size_t(count) * sizeof(E));
}
template <class E>
inline void copy(E* to, const E* from, int64_t count) {
  memcpy(to, from, size_t(count) * sizeof(E));
}

// A program and the rows it works in, `most_count` numbers at a time.
template <class E>
struct Runner {
  const Code& code;
  int64_t step;
  E* scratch = nullptr;

  explicit Runner(const Code& code) : code(code) {
    const int64_t live = most(1, code.registers);
    step = most(4, least(64, PROGRAM_BYTES / (live * int64_t(RNNJAX_BYTES)))) * Vector<E>::lanes;
  }
  void carve(Carver& carver) {
    scratch = carver.carve<E>((code.registers - code.inputs) * step);
    if (!scratch) return;
    for (int64_t k = 0; k < code.constant_count; ++k)
      fill(scratch + k * step, splat(E(code.constants[k])), step / Vector<E>::lanes);
  }
  // `count` numbers in each of `pieces` rows that lie `stride` apart; the first `wanted` outputs are copied out.
  void run(E* const* inputs, E* const* outputs, int64_t wanted, int64_t pieces, int64_t stride, int64_t count) const {
    if (count == stride) count *= pieces, pieces = 1;
    for (int64_t piece = 0; piece < pieces; ++piece)
      for (int64_t start = 0; start < count; start += step)
        run_step(inputs, outputs, wanted, piece * stride + start, least(step, count - start));
  }
  void run_step(E* const* inputs, E* const* outputs, int64_t wanted, int64_t start, int64_t count) const {
    E* rows[MOST_REGISTERS];
    for (int r = 0; r < code.inputs; ++r) rows[r] = inputs[r] + start;
    for (int r = code.inputs; r < code.registers; ++r) rows[r] = scratch + (r - code.inputs) * step;
    execute(code, rows, count);
    for (int64_t k = 0; k < wanted; ++k) copy(outputs[k] + start, rows[code.outputs[k]], count);
  }
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
