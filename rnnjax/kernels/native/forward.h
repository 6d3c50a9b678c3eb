// The forward half: weights are packed, and each tile of sequences goes through all of time.
#pragma once

#include "pass.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// All of W's product is made ahead, for blocks of this many rows, where a single step has too few rows to make it well.
constexpr int64_t AHEAD_ROWS = 96;
constexpr int64_t FEW_ROWS = 3;

template <class Stored>
struct ForwardPass : Pass<Stored> {
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
  static constexpr bool ROUNDED = !std::is_same_v<Stored, E>;  // h, before it is multiplied
  const Forward& call;
  bool ahead;
  Fill fills[2];
  int fill_count;
  int64_t batch;  // blocks whose program runs together
  int64_t panel_size[2];
  A* panels[2];  // of all groups, as the bias
  E* bias;

  ForwardPass(const Forward& call, const Crew& crew) : Pass<Stored>(call.problem, crew), call(call) {
    const int64_t rows = tiles.rows(shape, 0);
    ahead = rows <= FEW_ROWS;
    fills[0] = layout.input, fills[1] = layout.recurrent;
    fills[0].from_x = fills[1].from_h = true, fills[0].from_h = fills[1].from_x = false;
    fill_count = 2;
    if (layout.joined && !ahead) fills[0].from_h = true, fill_count = 1;
    batch = least(layout.batch(Runner<E>(problem.code).step, rows), ceiling(layout.blocks, members));
  }

  bool run() {
    Carver sizes{nullptr};
    carve(sizes);
    const ScopedMemory scoped(crew, sizes.used);
    if (!scoped.memory) return false;
    Carver carver{scoped.memory};
    carve(carver);
    crew.run(crew.self, vector_groups * layout.blocks, panel_groups * weights_work(layout),
             [](void* self, int64_t index) { static_cast<ForwardPass*>(self)->pack(index); }, this);
    this->open_gangs(all_tiles());
    crew.run(crew.self, all_tiles() * members, steps_work(layout),
             [](void* self, int64_t index) { static_cast<ForwardPass*>(self)->tile(index); }, this);
    return !this->out_of_memory;
  }

  int64_t all_tiles() const { return shape.S * tiles.count; }
  int64_t depth(const Fill& fill) const { return fill.from_x * factors<A>(shape.I) + fill.from_h * factors<A>(shape.D); }

  void carve(Carver& carver) {
    Pass<Stored>::carve(carver, all_tiles());
    for (int f = 0; f < fill_count; ++f) {
      panel_size[f] = layout.blocks * fills[f].count * depth(fills[f]) * L;
      panels[f] = carver.carve<A>(panel_groups * panel_size[f]);
    }
    bias = carver.carve<E>(vector_groups * layout.blocks * shape.C * L);
  }

  // Blocks run their programs in batches that do not straddle heads; panels do not straddle batches.
  int64_t batch_of(int64_t block) const { return least(batch, layout.head_blocks - block % layout.head_blocks); }
  bool starts_batch(int64_t block) const { return block % layout.head_blocks % batch == 0; }
  int64_t batches() const { return shape.N * ceiling(layout.head_blocks, batch); }
  // The block where a batch begins, by the number of the batch.
  int64_t start_of_batch(int64_t number) const {
    const int64_t each = ceiling(layout.head_blocks, batch);
    return number / each * layout.head_blocks + number % each * batch;
  }

  // Of one block of one group.
  void pack(int64_t index) {
    const int64_t group = index / layout.blocks, block = index % layout.blocks;
    if (block == 0) {
      this->pack_vectors(group);
      pack_bias(layout, group_of<Stored>(problem.b, group), bias + group * layout.blocks * shape.C * L);
    }
    if (!starts_batch(block) || group >= panel_groups) return;
    for (int f = 0; f < fill_count; ++f)
      for_panels(layout.step_panel, block, batch_of(block), fills[f].count, [&](int64_t first, int vectors) {
        A* to = panel_of(panels[f] + group * panel_size[f], first, depth(fills[f]));
        pack_panel(layout, fills[f], group_of<Stored>(problem.W, group), group_of<Stored>(problem.R, group), first,
                   vectors, to);
      });
  }

  // What one member works in.
  struct Scratch {
    A *x, *h;
    E *us, *pre_activations, *residuals, *unit_parameters;
    int64_t *x_offsets, *h_offsets;
    Runner<E> runner;
    int64_t x_rows;

    Scratch(const ForwardPass& pass, int64_t rows, Carver& carver) : runner(pass.problem.code) {
      const Layout<E>& layout = pass.layout;
      const Shape& shape = pass.shape;
      const int64_t batch = pass.batch * rows * L;
      x_rows = pass.ahead ? least(most(AHEAD_ROWS, rows), rows * most(1, shape.T)) : rows;
      x = carver.carve<A>(layout.input_pieces * x_rows * ROW<A>);
      h = carver.carve<A>(ROUNDED ? layout.blocks * rows * ROW<A> : 0);
      us = carver.carve<E>(pass.ahead ? layout.blocks * layout.input.count * x_rows * L : 0);
      pre_activations = carver.carve<E>(shape.C * batch);
      residuals = carver.carve<E>(shape.C * batch);
      unit_parameters = carver.carve<E>(shape.K * batch);
      x_offsets = carver.carve<int64_t>(layout.input_pieces);
      h_offsets = carver.carve<int64_t>(layout.head_blocks);
      runner.carve(carver);
      if (!carver.memory) return;
      for (int64_t piece = 0; piece < layout.input_pieces; ++piece) x_offsets[piece] = piece * x_rows * ROW<A>;
      for (int64_t block = 0; block < layout.head_blocks; ++block) h_offsets[block] = block * rows * ROW<A>;
    }
  };

  void tile(int64_t index);  // in forward_step.h
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
