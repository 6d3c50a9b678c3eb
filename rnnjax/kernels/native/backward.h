// The backward half: weights are packed, each tile of sequences goes back through time, and sums are put in place.
#pragma once

#include "pass.h"
#include "ring.h"
#include "sums.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

template <class Stored>
struct BackwardPass : Pass<Stored> {
  using typename Pass<Stored>::E;
  using typename Pass<Stored>::A;
  using Pass<Stored>::L;
  using Pass<Stored>::shape;
  using Pass<Stored>::layout;
  using Pass<Stored>::tiles;
  using Pass<Stored>::crew;
  using Pass<Stored>::members;
  using Pass<Stored>::problem;
  using Pass<Stored>::vector_groups;
  using Pass<Stored>::panel_groups;
  const Backward& call;
  int64_t parts;  // of the tiles of a group, each summed apart
  int64_t batch;  // blocks whose program runs together
  int64_t recurrent_size, input_size, sums_size;
  A *recurrent_panels, *input_panels;
  char* sums;

  BackwardPass(const Backward& call, const Crew& crew) : Pass<Stored>(call.problem, crew), call(call) {
    parts = least(tiles.count, ceiling(crew.threads, shape.S));
    batch = layout.batch(Runner<E>(problem.code).step, tiles.rows(shape, 0));
    recurrent_size = layout.blocks * recurrent_depth() * L;
    input_size = input_pieces() * input_depth() * L;
    sums_size = Sums<E>::size(layout, call);
  }

  bool run() {
    Carver sizes{nullptr};
    carve(sizes);
    const ScopedMemory scoped(crew, sizes.used);
    if (!scoped.memory) return false;
    Carver carver{scoped.memory};
    carve(carver);
    crew.run(crew.self, vector_groups * (layout.blocks + input_pieces()), panel_groups * 2 * weights_work(layout),
             [](void* self, int64_t index) { static_cast<BackwardPass*>(self)->pack(index); }, this);
    this->open_gangs(all_parts());
    crew.run(crew.self, all_parts() * members, 2 * steps_work(layout),
             [](void* self, int64_t index) { static_cast<BackwardPass*>(self)->part(index); }, this);
    if (!sums_are_own() && !this->out_of_memory)
      crew.run(crew.self, shape.S * layout.blocks, all_parts() * weights_work(layout),
               [](void* self, int64_t index) { static_cast<BackwardPass*>(self)->finish(index); }, this);
    return !this->out_of_memory;
  }

  int64_t all_parts() const { return shape.S * parts; }
  int64_t ring_rows() const { return Ring<Stored>::ring_rows(shape, tiles.rows(shape, 0)); }
  int64_t recurrent_depth() const { return factors<A>(shape.D) * layout.recurrent.count; }
  int64_t input_depth() const { return shape.N * factors<A>(shape.D) * layout.input.count; }
  int64_t input_pieces() const { return call.dxs ? layout.input_pieces : 0; }  // of the cotangent of the inputs
  // Where a group is one part that nobody shares, its sums are made and written by one task, in memory of its own.
  bool sums_are_own() const { return parts == 1 && members == 1; }

  void carve(Carver& carver) {
    Pass<Stored>::carve(carver, all_parts());
    recurrent_panels = carver.carve<A>(panel_groups * recurrent_size);
    input_panels = carver.carve<A>(panel_groups * input_size);
    sums = carver.carve<char>(sums_are_own() ? 0 : all_parts() * sums_size);
  }

  // Of one block of one group, or of one piece of its inputs.
  void pack(int64_t index) {
    const int64_t each = layout.blocks + input_pieces(), group = index / each, at = index % each;
    if (at == 0) this->pack_vectors(group);
    if (group >= panel_groups) return;
    if (at < layout.blocks) {
      const int64_t start = at - at % layout.head_blocks;
      for_panels(layout.step_panel, start, layout.head_blocks, 1, [&](int64_t first, int vectors) {
        if (first != at) return;
        pack_recurrent_transposed(layout, group_of<Stored>(problem.R, group), first, vectors,
                                  panel_of(recurrent_panels + group * recurrent_size, first, recurrent_depth()));
      });
    } else {
      for_panels(layout.sum_panel, 0, layout.input_pieces, 1, [&](int64_t first, int vectors) {
        if (first != at - layout.blocks) return;
        pack_input_transposed(layout, group_of<Stored>(problem.W, group), first, vectors,
                              panel_of(input_panels + group * input_size, first, input_depth()));
      });
    }
  }

  // Puts the sums of all parts of a group where they belong, as far as they concern one block.
  void finish(int64_t index) {
    const int64_t group = index / layout.blocks;
    Finish<E>{layout, call, parts, group, index % layout.blocks, sums + group * parts * sums_size}.run();
  }

  // What the members of a tile have in common.
  struct Common {
    Ring<Stored> ring;
    E* states;  // the cotangents of the state after a step and before it

    Common(const BackwardPass& pass, Carver& carver)
        : ring(pass.layout, pass.call, pass.tiles.rows(pass.shape, 0), carver) {
      states = carver.carve<E>(2 * pass.state_size(pass.tiles.rows(pass.shape, 0)));
    }
  };

  // What one member works in.
  struct Scratch {
    E *before, *residuals, *dpre_activations, *unit_parameters, *dunit_parameters, *dx;
    Runner<E> runner;

    Scratch(const BackwardPass& pass, Carver& carver) : runner(pass.problem.code) {
      const Shape& shape = pass.shape;
      const int64_t batch = pass.batch * pass.tiles.rows(shape, 0) * L;
      dx = carver.carve<E>(pass.call.dxs ? MOST_VECTORS * pass.ring_rows() * L : 0);
      before = carver.carve<E>(shape.F * batch);
      residuals = carver.carve<E>(shape.C * batch);
      dpre_activations = carver.carve<E>(shape.C * batch);
      unit_parameters = carver.carve<E>(shape.K * batch);
      dunit_parameters = carver.carve<E>(shape.K * batch);
      runner.carve(carver);
    }
  };

  // These are in backward_step.h. The owners of all parts come first, so that a helper finds one that has begun, or has
  // ended.
  void part(int64_t index) {
    if (index < all_parts()) {
      lead(index);
    } else {
      follow(index % all_parts());
    }
  }
  void lead(int64_t index);
  void follow(int64_t index);
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
