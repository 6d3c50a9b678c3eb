// The forward half: a tile of sequences through all of time, one step after the other.
#pragma once

#include <new>

#include "pack.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// All of W's product is made ahead, for blocks of this many rows, where a single step has too few rows to make it well.
constexpr int64_t AHEAD_ROWS = 96;
constexpr int64_t FEW_ROWS = 3;
constexpr int64_t SECTION_STEPS = 32, FIRST_ROWS = 12;  // of a section that is shared; while some have yet to join

template <class Stored>
struct ForwardPass {
  using E = Computed<Stored>;
  using A = Factor<Stored>;
  static constexpr int L = Vector<E>::lanes;
  static constexpr bool ROUNDED = !std::is_same_v<Stored, E>;  // h, before it is multiplied
  const Forward& call;
  const Crew& crew;
  const Shape& shape;
  Tiles tiles;
  Layout<E> layout;
  int64_t members;  // who may share a tile
  bool ahead, out_of_memory = false;
  Fill fills[2];
  int fill_count = 0;
  int64_t batch;  // blocks whose program runs together
  int64_t panel_size[2];
  A* panels[2];  // packed, of all groups, as all the others
  E *bias, *gains, *initial;
  int64_t weight_groups, panel_groups;  // one, where all share what is packed
  Gang* gangs;  // of each tile

  ForwardPass(const Forward& call, const Crew& crew)
      : call(call), crew(crew), shape(call.problem.shape), tiles(shape, crew.threads), layout(call.problem, tiles.rows(shape, 0)) {
    const int64_t rows = tiles.rows(shape, 0);
    ahead = rows <= FEW_ROWS;
    fills[0] = layout.input, fills[1] = layout.recurrent;
    fills[0].from_x = fills[1].from_h = true, fills[0].from_h = fills[1].from_x = false;
    fill_count = 2;
    if (layout.joined && !ahead) fills[0].from_h = true, fill_count = 1;
    members = sharers(layout, tiles, crew.threads);
    batch = least(layout.batch(Runner<E>(call.problem.code).step, rows), ceiling(layout.blocks, members));
  }

  int64_t depth(const Fill& fill) const { return fill.from_x * factors<A>(shape.I) + fill.from_h * factors<A>(shape.D); }

  bool run() {
    weight_groups = call.problem.W.stride || call.problem.R.stride || call.problem.b.stride ||
                            call.problem.gains.stride || call.problem.initial.stride ? shape.S : 1;
    panel_groups = call.problem.W.stride || call.problem.R.stride ? shape.S : 1;
    Carver sizes{nullptr};
    carve_weights(sizes);
    char* memory = static_cast<char*>(crew.take(crew.self, sizes.used));
    if (!memory) return false;
    Carver carver{memory};
    carve_weights(carver);
    crew.run(crew.self, weight_groups * layout.blocks, panel_groups * weights_work(layout),
             [](void* self, int64_t index) { static_cast<ForwardPass*>(self)->pack(index); }, this);
    for (int64_t tile = 0; members > 1 && tile < all_tiles(); ++tile) new (gangs + tile) Gang;
    crew.run(crew.self, all_tiles() * members, steps_work(layout),
             [](void* self, int64_t index) { static_cast<ForwardPass*>(self)->tile(index); }, this);
    crew.give(crew.self, memory);
    return !out_of_memory;
  }

  int64_t all_tiles() const { return shape.S * tiles.count; }

  void carve_weights(Carver& carver) {
    gangs = carver.carve<Gang>(members > 1 ? all_tiles() : 0);
    for (int f = 0; f < fill_count; ++f) {
      panel_size[f] = layout.blocks * fills[f].count * depth(fills[f]) * L;
      panels[f] = carver.carve<A>(panel_groups * panel_size[f]);
    }
    bias = carver.carve<E>(weight_groups * layout.blocks * shape.C * L);
    gains = carver.carve<E>(weight_groups * layout.blocks * shape.K * L);
    initial = carver.carve<E>(weight_groups * layout.blocks * shape.F * L);
  }

  // Blocks run their programs in batches that do not straddle heads; panels do not straddle batches.
  int64_t batch_of(int64_t block) const { return least(batch, layout.head_blocks - block % layout.head_blocks); }
  bool starts_batch(int64_t block) const { return block % layout.head_blocks % batch == 0; }
  // The block where a batch begins, by the number of the batch.
  int64_t start_of_batch(int64_t number) const {
    const int64_t each = ceiling(layout.head_blocks, batch);
    return number / each * layout.head_blocks + number % each * batch;
  }

  void pack(int64_t index) {
    const int64_t group = index / layout.blocks, block = index % layout.blocks;
    const Problem& problem = call.problem;
    if (block == 0) {
      pack_bias(layout, group_of<Stored>(problem.b, group), bias + group * layout.blocks * shape.C * L);
      pack_units(layout, group_of<E>(problem.gains, group), shape.K, gains + group * layout.blocks * shape.K * L);
      pack_units(layout, group_of<E>(problem.initial, group), shape.F, initial + group * layout.blocks * shape.F * L);
    }
    if (!starts_batch(block) || group >= panel_groups) return;
    for (int f = 0; f < fill_count; ++f)
      for_panels(layout.step_panel, block, batch_of(block), fills[f].count, [&](int64_t first, int vectors) {
        A* to = panel_of(panels[f] + group * panel_size[f], first, depth(fills[f]));
        pack_panel(layout, fills[f], group_of<Stored>(problem.W, group), group_of<Stored>(problem.R, group), first, vectors, to);
      });
  }

  // What one member works in.
  struct Scratch {
    A *x, *h;
    E *us, *columns, *kept, *gains;
    int64_t *x_offsets, *h_offsets;
    Runner<E> runner;
    int64_t x_rows;

    Scratch(const ForwardPass& pass, int64_t rows, Carver& carver) : runner(pass.call.problem.code) {
      const Layout<E>& layout = pass.layout;
      const Shape& shape = pass.shape;
      x_rows = pass.ahead ? least(most(AHEAD_ROWS, rows), rows * most(1, shape.T)) : rows;
      x = carver.carve<A>(layout.input_pieces * x_rows * ROW<A>);
      h = carver.carve<A>(ROUNDED ? layout.blocks * rows * ROW<A> : 0);
      us = carver.carve<E>(pass.ahead ? layout.blocks * layout.input.count * x_rows * L : 0);
      columns = carver.carve<E>(shape.C * pass.batch * rows * L);
      kept = carver.carve<E>(shape.C * pass.batch * rows * L);
      gains = carver.carve<E>(shape.K * pass.batch * rows * L);
      x_offsets = carver.carve<int64_t>(layout.input_pieces);
      h_offsets = carver.carve<int64_t>(layout.head_blocks);
      runner.carve(carver);
      if (!carver.memory) return;
      for (int64_t piece = 0; piece < layout.input_pieces; ++piece) x_offsets[piece] = piece * x_rows * ROW<A>;
      for (int64_t block = 0; block < layout.head_blocks; ++block) h_offsets[block] = block * rows * ROW<A>;
    }
  };

  int64_t state_size(int64_t rows) const { return shape.F * layout.blocks * rows * L; }

  // The owners of all tiles come first, so that a helper finds one that has begun, or has ended.
  void tile(int64_t index) {
    const int64_t number = index % all_tiles(), group = number / tiles.count;
    const bool owner = index < all_tiles();
    const Rows rows(call.problem, group, number % tiles.count, tiles);
    if (rows.count == 0) return;
    Carver sizes{nullptr};
    Scratch(*this, rows.count, sizes);
    sizes.carve<E>(owner ? 2 * state_size(rows.count) : 0);
    char* memory = static_cast<char*>(crew.take(crew.self, sizes.used));
    if (!memory) {
      if (owner) __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      if (owner && members > 1) gangs[number].close({}, 0);
      return;
    }
    Carver carver{memory};
    Scratch scratch(*this, rows.count, carver);
    Gang* gang = members > 1 ? gangs + number : nullptr;
    Step step{*this, rows, scratch, group * (weight_groups > 1), gang};
    if (owner) {
      E* states = carver.carve<E>(2 * state_size(rows.count));
      clear(states, 2 * state_size(rows.count));
      step.lead(states);
    } else {
      step.follow();
    }
    crew.give(crew.self, memory);
  }

  // One tile on its way through time, as far as one member goes with it.
  struct Step {
    const ForwardPass& pass;
    const Rows& rows;
    Scratch& scratch;
    int64_t weight_group;
    Gang* gang;
    const Shape& shape = pass.shape;
    const Layout<E>& layout = pass.layout;
    E* states = nullptr;  // before and after a step, in turns
    E *before = nullptr, *after = nullptr;
    Member member = {};
    int64_t begin = 0, end = 0;  // the blocks of this member
    int64_t us_row = 0;          // where the rows of this step begin in what was made ahead
    int64_t key = 0;             // of the section

    void lead(E* fresh) {
      states = before = fresh;
      load_state();
      begin = 0, end = layout.blocks;
      for (int64_t row = 0; row < rows.count; ++row)
        if (rows.length[row] == 0) finish(row, before);
      if (gang) gang->shared = states;
      for (int64_t t = 0; t < rows.longest;) {
        key = t + 1;
        if (gang) member = gang->open(key);
        t = section(t);
      }
      if (gang) gang->close(member, key);
    }

    void follow() {
      const int64_t number = gang->join();
      while (number && gang->enter(number, &key, &member)) {
        states = static_cast<E*>(gang->shared);
        section(key - 1);
        gang->done(member, key);
      }
    }

    void meet(int64_t phase) {
      if (gang) gang->meet(member, key, phase);
    }

    // Where a section that begins at step t ends: short ones until all are there who may come.
    int64_t end_of_section(int64_t t) const {
      if (!pass.ahead) return gang ? least(t + SECTION_STEPS, rows.longest) : rows.longest;
      const int64_t room = member.members < pass.members ? least(FIRST_ROWS, scratch.x_rows) : scratch.x_rows;
      int64_t made = 0;
      for (; t < rows.longest && made + rows.active(t) <= room; ++t) made += rows.active(t);
      return t;
    }

    int64_t section(int64_t first) {
      const int64_t batches = shape.N * ceiling(layout.head_blocks, pass.batch), last = end_of_section(first);
      begin = pass.start_of_batch(member.begin(batches)), end = pass.start_of_batch(member.end(batches));
      us_row = 0;
      if (pass.ahead) make_ahead(first, last);
      meet(0);
      for (int64_t t = first; t < last; ++t) {
        before = states + (t & 1) * pass.state_size(rows.count);
        after = states + (~t & 1) * pass.state_size(rows.count);
        step(t, t - first + 1);
      }
      return last;
    }

    void step(int64_t t, int64_t phase) {
      const int64_t active = rows.active(t);
      reset(t, active);
      meet(phase);
      if (ROUNDED) round_h(active);
      if (!pass.ahead)
        for (int64_t row = 0; row < active; ++row) load_x(row, t, row);
      for (int64_t block = begin; block < end;) {
        const int64_t blocks = pass.batch_of(block);
        fill_columns(block, blocks, active);
        run_program(block, blocks, active);
        write(block, blocks, t, active);
        block += blocks;
      }
      us_row += active;
      for (int64_t row = 0; row < active; ++row)
        if (rows.length[row] == t + 1) finish(row, after);
    }

    E* state_of(E* state, int64_t field, int64_t block) const {
      return state + (field * layout.blocks + block) * rows.count * L;
    }

    void load_state() {
      const E* from = static_cast<const E*>(pass.call.problem.state);
      for (int64_t row = 0; row < rows.count; ++row)
        for (int64_t f = 0; f < shape.F; ++f)
          for (int64_t block = 0; block < layout.blocks; ++block)
            store(state_of(before, f, block) + row * L,
                  load_part(from + (rows.sequence[row] * shape.F + f) * layout.H + layout.first_unit(block),
                            layout.width(block)));
    }

    void reset(int64_t t, int64_t active) {
      const uint8_t* resets = pass.call.problem.resets;
      if (!resets) return;
      const E* initial = pass.initial + weight_group * layout.blocks * shape.F * L;
      for (int64_t row = 0; row < active; ++row)
        if (resets[rows.sequence[row] * shape.T + t])
          for (int64_t f = 0; f < shape.F; ++f)
            for (int64_t block = begin; block < end; ++block)
              store(state_of(before, f, block) + row * L, load(initial + (f * layout.blocks + block) * L));
    }

    void load_x(int64_t row, int64_t t, int64_t to) {
      const Stored* from = static_cast<const Stored*>(pass.call.problem.xs) + (rows.sequence[row] * shape.T + t) * shape.I;
      for (int64_t piece = 0; piece < layout.input_pieces; ++piece) {
        __builtin_prefetch(from + shape.I + piece * L);
        put_lanes(scratch.x + (piece * scratch.x_rows + to) * ROW<A>,
                  load_part(from + piece * L, layout.input_width(piece)));
      }
    }

    // The h of those heads that this member has blocks of. Each member makes its own: that takes less than to wait for it.
    void round_h(int64_t active) {
      for (int64_t block = start_of_head(begin), all = start_of_head(end + layout.head_blocks - 1); block < all; ++block)
        for (int64_t row = 0; row < active; ++row)
          put_lanes(scratch.h + (block * rows.count + row) * ROW<A>,
                    as_factor<Stored>(load_part(state_of(before, 0, block) + row * L, layout.width(block))));
    }
    int64_t start_of_head(int64_t block) const { return layout.head(block) * layout.head_blocks; }

    void parts_of_x(Pieces<A>* parts) const {
      parts_of(scratch.x, scratch.x_offsets, shape.I, parts);
    }
    void parts_of_h(Pieces<A>* parts, int64_t block) const {
      const int64_t start = start_of_head(block);
      if constexpr (ROUNDED) {
        parts_of(scratch.h + start * rows.count * ROW<A>, scratch.h_offsets, shape.D, parts);
      } else {
        parts_of(state_of(before, 0, start), scratch.h_offsets, shape.D, parts);
      }
    }
    static void parts_of(const A* base, const int64_t* offsets, int64_t numbers, Pieces<A>* parts) {
      parts[0] = {base, offsets, numbers / L, ROW<A>};
      parts[1] = {base, offsets + numbers / L, ceiling(numbers, L) - numbers / L, factors<A>(int(numbers % L))};
    }

    // us = W x + b of a section.
    void make_ahead(int64_t first_step, int64_t last_step) {
      int64_t made = 0;
      for (int64_t t = first_step; t < last_step; ++t)
        for (int64_t row = 0, active = rows.active(t); row < active; ++row) load_x(row, t, made++);
      const Fill& fill_ = pass.fills[0];
      Pieces<A> parts[2];
      parts_of_x(parts);
      for (int64_t block = begin; block < end; block += pass.batch_of(block)) {
        for_panels(layout.step_panel, block, pass.batch_of(block), fill_.count, [&](int64_t first, int vectors) {
          E* out[MOST_VECTORS];
          for (int v = 0; v < vectors; ++v) {
            const int64_t at = (first + v) / fill_.count, c = fill_.columns[(first + v) % fill_.count];
            out[v] = scratch.us + (first + v) * scratch.x_rows * L;
            fill(out[v], load(bias_of(at, c)), made);
          }
          multiply_all(parts, 1, made, panel(0, first), out, vectors);
        });
      }
    }

    const E* bias_of(int64_t block, int64_t column) const {
      return pass.bias + ((weight_group * layout.blocks + block) * shape.C + column) * L;
    }
    const A* panel(int f, int64_t first) const {
      const int64_t group = weight_group % pass.panel_groups;
      return panel_of(pass.panels[f] + group * pass.panel_size[f], first, pass.depth(pass.fills[f]));
    }

    E* column_of(E* columns, int64_t column, int64_t blocks, int64_t block_in_batch) const {
      return columns + (column * blocks + block_in_batch) * rows.count * L;
    }

    // The gate buffer of a batch of blocks, [column][block][row][lane]: bias, or what was made ahead, plus the products.
    void fill_columns(int64_t block, int64_t blocks, int64_t active) {
      for (int64_t u = 0; u < blocks; ++u)
        for (int64_t c = 0; c < shape.C; ++c)
          fill(column_of(scratch.columns, c, blocks, u), load(bias_of(block + u, c)), rows.count);
      if (pass.ahead)
        for (int64_t u = 0; u < blocks; ++u)
          for (int k = 0; k < layout.input.count; ++k)
            copy(column_of(scratch.columns, layout.input.columns[k], blocks, u),
                 scratch.us + (((block + u) * layout.input.count + k) * scratch.x_rows + us_row) * L, active * L);
      for (int f = pass.ahead; f < pass.fill_count; ++f) {
        const Fill& filled = pass.fills[f];
        Pieces<A> parts[4];
        if (filled.from_x) parts_of_x(parts);
        if (filled.from_h) parts_of_h(parts + 2 * filled.from_x, block);
        for_panels(layout.step_panel, block, blocks, filled.count, [&](int64_t first, int vectors) {
          E* out[MOST_VECTORS];
          for (int v = 0; v < vectors; ++v)
            out[v] = column_of(scratch.columns, filled.columns[(first + v) % filled.count], blocks,
                               (first + v) / filled.count - block);
          multiply_all(parts, filled.from_x + filled.from_h, active, panel(f, first), out, vectors);
        });
      }
    }

    void run_program(int64_t block, int64_t blocks, int64_t active) {
      E *inputs[MOST_COLUMNS + MOST_FIELDS + MOST_GAINS], *outputs[MOST_FIELDS + MOST_COLUMNS];
      int64_t in = 0, out = 0;
      for (int64_t c = 0; c < shape.C; ++c) inputs[in++] = column_of(scratch.columns, c, blocks, 0);
      for (int64_t f = 0; f < shape.F; ++f) inputs[in++] = state_of(before, f, block);
      for (int64_t k = 0; k < shape.K; ++k) {
        E* to = inputs[in++] = scratch.gains + k * pass.batch * rows.count * L;
        for (int64_t u = 0; u < blocks; ++u)
          fill(to + u * rows.count * L,
               load(pass.gains + ((weight_group * shape.K + k) * layout.blocks + block + u) * L), rows.count);
      }
      for (int64_t f = 0; f < shape.F; ++f) outputs[out++] = state_of(after, f, block);
      for (int64_t c = 0; c < shape.C; ++c) outputs[out++] = column_of(scratch.kept, c, blocks, 0);
      if (!pass.call.kept) out = shape.F;
      scratch.runner.run(inputs, outputs, out, blocks, rows.count * L, active * L);
    }

    void write(int64_t block, int64_t blocks, int64_t t, int64_t active) {
      for (int64_t u = 0; u < blocks; ++u) {
        const int64_t unit = layout.first_unit(block + u);
        const int width = layout.width(block + u);
        for (int64_t f = 0; f < shape.F; ++f) {
          if (!pass.call.states[f]) continue;
          const E* from = state_of(after, f, block + u);
          E* to = static_cast<E*>(pass.call.states[f]) + unit;
          for (int64_t row = 0; row < active; ++row) {
            E* at = to + (rows.sequence[row] * shape.T + t) * layout.H;
            __builtin_prefetch(at + layout.H, 1);
            store_part(at, load(from + row * L), width);
          }
        }
        if (!pass.call.kept) continue;
        for (int64_t c = 0; c < shape.C; ++c) {
          const E* from = column_of(scratch.kept, c, blocks, u);
          E* to = static_cast<E*>(pass.call.kept) + c * layout.H + unit;
          for (int64_t row = 0; row < active; ++row) {
            E* at = to + (rows.sequence[row] * shape.T + t) * shape.C * layout.H;
            __builtin_prefetch(at + shape.C * layout.H, 1);
            store_part(at, load(from + row * L), width);
          }
        }
      }
    }

    // The row has come to its end: its state is the last one, and is held in the steps that are ignored.
    void finish(int64_t row, E* state) {
      const int64_t sequence = rows.sequence[row], unit = layout.first_unit(begin);
      const int64_t units = (end < layout.blocks ? layout.first_unit(end) : layout.H) - unit;
      for (int64_t f = 0; f < shape.F; ++f) {
        E* last = static_cast<E*>(pass.call.last) + (sequence * shape.F + f) * layout.H;
        for (int64_t block = begin; block < end; ++block)
          store_part(last + layout.first_unit(block), load(state_of(state, f, block) + row * L), layout.width(block));
        if (!pass.call.states[f]) continue;
        E* held = static_cast<E*>(pass.call.states[f]) + sequence * shape.T * layout.H;
        for (int64_t t = rows.length[row]; t < shape.T; ++t) copy(held + t * layout.H + unit, last + unit, units);
      }
    }
  };
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
