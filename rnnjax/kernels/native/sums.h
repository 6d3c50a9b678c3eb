// Sums over sequences and time: the gradients of all that is shared, and where they are put in the end.
#pragma once

#include "pack.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// Of one group and one part of its sequences; laid out as the products leave them, panel by panel.
template <class E>
struct Sums {
  E *W, *b, *R, *unit_parameters, *initial;

  Sums(const Layout<E>& layout, const Backward& call, Carver& carver) {
    constexpr int L = Vector<E>::lanes;
    const Shape& shape = layout.shape;
    W = carver.carve<E>(call.dW ? layout.blocks * layout.input.count * shape.I * L : 0);
    b = carver.carve<E>(call.db ? layout.blocks * layout.input.count * L : 0);
    R = carver.carve<E>(call.dR ? layout.blocks * layout.recurrent.count * shape.D * L : 0);
    unit_parameters = carver.carve<E>(shape.K * layout.blocks * L);
    initial = carver.carve<E>(shape.F * layout.blocks * L);
  }
  static int64_t size(const Layout<E>& layout, const Backward& call) {
    Carver sizes{nullptr};
    Sums(layout, call, sizes);
    return int64_t(sizes.used);
  }
};

// Puts where they belong the sums of all `parts` of one group, which lie one after the other at `summed`: as far as they
// concern one block.
template <class E>
struct Finish {
  const Layout<E>& layout;
  const Backward& call;
  int64_t parts, group, block;
  char* summed;
  const int64_t size = Sums<E>::size(layout, call), unit = layout.first_unit(block);

  void run() const {
    const Shape& shape = layout.shape;
    const int64_t H = layout.H, G = shape.G, D = shape.D, head = layout.head(block);
    if (call.dW)
      write_panels(&Sums<E>::W, layout.input, shape.I, 0, layout.blocks, [&](int64_t i, int64_t gate) {
        return static_cast<E*>(call.dW) + ((group * shape.I + i) * G + gate) * H + unit;
      });
    if (call.db)
      write_panels(&Sums<E>::b, layout.input, 1, 0, layout.blocks, [&](int64_t, int64_t gate) {
        return static_cast<E*>(call.db) + (group * G + gate) * H + unit;
      });
    if (call.dR)
      write_panels(&Sums<E>::R, layout.recurrent, D, head * layout.head_blocks, layout.head_blocks,
                   [&](int64_t p, int64_t gate) {
        return static_cast<E*>(call.dR) + (((group * shape.N + head) * D + p) * G + gate) * D + unit - head * D;
      });
    for (int64_t k = 0; call.dunit_parameters && k < shape.K; ++k)
      write(&Sums<E>::unit_parameters, k * layout.blocks + block,
            static_cast<E*>(call.dunit_parameters) + (group * shape.K + k) * H + unit);
    for (int64_t f = 0; call.dinitial && f < shape.F; ++f)
      write(&Sums<E>::initial, f * layout.blocks + block,
            static_cast<E*>(call.dinitial) + (group * shape.F + f) * H + unit);
  }

  template <class Place>
  void write_panels(E* Sums<E>::*sum, const Fill& fill, int64_t depth, int64_t begin, int64_t blocks, Place place) const {
    for_panels(layout.sum_panel, begin, blocks, fill.count, [&](int64_t first, int vectors) {
      for (int v = 0; v < vectors; ++v) {
        if ((first + v) / fill.count != block) continue;
        const int64_t gate = layout.pre_activations[fill.pre_activations[(first + v) % fill.count]].gate;
        for (int64_t m = 0; m < depth; ++m) write(sum, first * depth + m * vectors + v, place(m, gate));
      }
    });
  }

  void write(E* Sums<E>::*sum, int64_t vector, E* to) const {
    V<E> value = {};
    for (int64_t part = 0; part < parts; ++part) {
      Carver carver{summed + part * size};
      value += load(Sums<E>(layout, call, carver).*sum + vector * Vector<E>::lanes);
    }
    store_part(to, value, layout.width(block));
  }
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
