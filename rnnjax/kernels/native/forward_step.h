// The steps of the forward half: one tile of sequences, one step after the other.
#pragma once

#include "forward.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

constexpr int64_t SECTION_STEPS = 32, FIRST_ROWS = 12;  // of a section that is shared; while some have yet to join

template <class Stored>
struct ForwardScan : TileScan<Stored> {
  using Base = TileScan<Stored>;
  using typename Base::E;
  using A = Factor<Stored>;
  using Base::L;
  using Base::rows;
  using Base::shape;
  using Base::layout;
  using Base::group;
  using Base::gang;
  using Base::member;
  using Base::begin;
  using Base::end;
  const ForwardPass<Stored>& pass;
  typename ForwardPass<Stored>::Scratch& scratch;
  E* states = nullptr;  // before and after a step, in turns
  E *before = nullptr, *after = nullptr;
  int64_t us_row = 0;  // where the rows of this step begin in what was made ahead

  ForwardScan(const ForwardPass<Stored>& pass, const Rows& rows, int64_t group, Gang* gang,
                 typename ForwardPass<Stored>::Scratch& scratch)
      : Base(pass, rows, group, gang), pass(pass), scratch(scratch) {}

  void lead(E* zeros) {
    states = before = zeros;
    load_state();
    for (int64_t row = 0; row < rows.count; ++row)
      if (rows.length[row] == 0) finish(row, before);
    if (gang) gang->shared = states;
    this->lead_through([&](int64_t t) { return section(t); });
  }
  void follow() {
    this->follow_through([&](int64_t t) {
      states = static_cast<E*>(gang->shared);
      section(t);
    });
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
    const int64_t batches = pass.batches(), last = end_of_section(first);
    begin = pass.start_of_batch(member.begin(batches)), end = pass.start_of_batch(member.end(batches));
    us_row = 0;
    if (pass.ahead) make_ahead(first, last);
    this->meet(0);
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
    this->meet(phase);
    if (pass.ROUNDED) round_h(active);
    if (!pass.ahead)
      for (int64_t row = 0; row < active; ++row) load_x(row, t, row);
    for (int64_t block = begin; block < end;) {
      const int64_t blocks = pass.batch_of(block);
      fill_pre_activations(block, blocks, active);
      run_program(block, blocks, active);
      write(block, blocks, t, active);
      block += blocks;
    }
    us_row += active;
    for (int64_t row = 0; row < active; ++row)
      if (rows.length[row] == t + 1) finish(row, after);
  }

  void load_state() {
    const E* from = static_cast<const E*>(pass.problem.state);
    for (int64_t row = 0; row < rows.count; ++row)
      for (int64_t f = 0; f < shape.F; ++f)
        for (int64_t block = 0; block < layout.blocks; ++block)
          store(this->state_of(before, f, block) + row * L,
                load_part(from + (rows.sequence[row] * shape.F + f) * layout.H + layout.first_unit(block),
                          layout.width(block)));
  }

  void reset(int64_t t, int64_t active) {
    for (int64_t row = 0; row < active; ++row)
      if (this->is_reset(row, t))
        for (int64_t f = 0; f < shape.F; ++f)
          for (int64_t block = begin; block < end; ++block)
            store(this->state_of(before, f, block) + row * L, this->initial_of(f, block));
  }

  void load_x(int64_t row, int64_t t, int64_t to) {
    const Stored* from = static_cast<const Stored*>(pass.problem.xs) + (rows.sequence[row] * shape.T + t) * shape.I;
    for (int64_t piece = 0; piece < layout.input_pieces; ++piece) {
      __builtin_prefetch(from + shape.I + piece * L);
      put_lanes(scratch.x + (piece * scratch.x_rows + to) * ROW<A>,
                load_part(from + piece * L, layout.input_width(piece)));
    }
  }

  // The h of those heads that this member has blocks of. Each member makes its own: that takes less than to wait for it.
  void round_h(int64_t active) {
    const int64_t last = start_of_head(end + layout.head_blocks - 1);
    for (int64_t block = start_of_head(begin); block < last; ++block)
      for (int64_t row = 0; row < active; ++row)
        put_lanes(scratch.h + (block * rows.count + row) * ROW<A>,
                  as_factor<Stored>(load_part(this->state_of(before, 0, block) + row * L, layout.width(block))));
  }
  int64_t start_of_head(int64_t block) const { return layout.head(block) * layout.head_blocks; }

  void parts_of_x(Pieces<A>* parts) const { parts_of(scratch.x, scratch.x_offsets, shape.I, parts); }
  void parts_of_h(Pieces<A>* parts, int64_t block) const {
    const int64_t start = start_of_head(block);
    if constexpr (ForwardPass<Stored>::ROUNDED) {
      parts_of(scratch.h + start * rows.count * ROW<A>, scratch.h_offsets, shape.D, parts);
    } else {
      parts_of(this->state_of(before, 0, start), scratch.h_offsets, shape.D, parts);
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
    const Fill& input = pass.fills[0];
    Pieces<A> parts[2];
    parts_of_x(parts);
    for (int64_t block = begin; block < end; block += pass.batch_of(block))
      for_panels(layout.step_panel, block, pass.batch_of(block), input.count, [&](int64_t first, int vectors) {
        E* out[MOST_VECTORS];
        for (int v = 0; v < vectors; ++v) {
          out[v] = scratch.us + (first + v) * scratch.x_rows * L;
          fill(out[v], bias_of((first + v) / input.count, input.pre_activations[(first + v) % input.count]), made);
        }
        multiply_all(parts, 1, made, panel(0, first), out, vectors);
      });
  }

  V<E> bias_of(int64_t block, int64_t pre_activation) const {
    return load(pass.bias + ((group * layout.blocks + block) * shape.C + pre_activation) * L);
  }
  const A* panel(int f, int64_t first) const {
    return panel_of(pass.panels[f] + group % pass.panel_groups * pass.panel_size[f], first, pass.depth(pass.fills[f]));
  }

  // Of a batch of blocks, [pre-activation][block][row][lane]: bias, or what was made ahead, plus the products.
  void fill_pre_activations(int64_t block, int64_t blocks, int64_t active) {
    E* to = scratch.pre_activations;
    for (int64_t u = 0; u < blocks; ++u)
      for (int64_t c = 0; c < shape.C; ++c) fill(this->batch_of(to, c, blocks, u), bias_of(block + u, c), rows.count);
    if (pass.ahead)
      for (int64_t u = 0; u < blocks; ++u)
        for (int k = 0; k < layout.input.count; ++k)
          copy(this->batch_of(to, layout.input.pre_activations[k], blocks, u),
               scratch.us + (((block + u) * layout.input.count + k) * scratch.x_rows + us_row) * L, active * L);
    for (int f = pass.ahead; f < pass.fill_count; ++f) {
      const Fill& fill = pass.fills[f];
      Pieces<A> parts[4];
      if (fill.from_x) parts_of_x(parts);
      if (fill.from_h) parts_of_h(parts + 2 * fill.from_x, block);
      for_panels(layout.step_panel, block, blocks, fill.count, [&](int64_t first, int vectors) {
        E* out[MOST_VECTORS];
        for (int v = 0; v < vectors; ++v)
          out[v] = this->batch_of(to, fill.pre_activations[(first + v) % fill.count], blocks,
                                  (first + v) / fill.count - block);
        multiply_all(parts, fill.from_x + fill.from_h, active, panel(f, first), out, vectors);
      });
    }
  }

  void run_program(int64_t block, int64_t blocks, int64_t active) {
    E *inputs[MOST_PRE_ACTIVATIONS + MOST_FIELDS + MOST_UNIT_PARAMETERS], *outputs[MOST_FIELDS + MOST_PRE_ACTIVATIONS];
    int64_t in = 0, out = 0;
    for (int64_t c = 0; c < shape.C; ++c) inputs[in++] = this->batch_of(scratch.pre_activations, c, blocks, 0);
    for (int64_t f = 0; f < shape.F; ++f) inputs[in++] = this->state_of(before, f, block);
    this->broadcast_unit_parameters(scratch.unit_parameters, block, blocks, inputs + in);
    for (int64_t f = 0; f < shape.F; ++f) outputs[out++] = this->state_of(after, f, block);
    for (int64_t c = 0; c < shape.C; ++c) outputs[out++] = this->batch_of(scratch.residuals, c, blocks, 0);
    if (!pass.call.residuals) out = shape.F;
    scratch.runner.run(inputs, outputs, out, blocks, rows.count * L, active * L);
  }

  void write(int64_t block, int64_t blocks, int64_t t, int64_t active) {
    for (int64_t u = 0; u < blocks; ++u) {
      for (int64_t f = 0; f < shape.F; ++f)
        if (pass.call.states[f])
          write_rows(this->state_of(after, f, block + u), pass.call.states[f], 1, 0, block + u, t, active);
      for (int64_t c = 0; pass.call.residuals && c < shape.C; ++c)
        write_rows(this->batch_of(scratch.residuals, c, blocks, u), pass.call.residuals, shape.C, c, block + u, t, active);
    }
  }
  // To vector `number` of the `count` that there are of each step.
  void write_rows(const E* from, void* to, int64_t count, int64_t number, int64_t block, int64_t t, int64_t active) {
    const int64_t stride = count * layout.H;
    const int width = layout.width(block);
    E* out = static_cast<E*>(to) + t * stride + number * layout.H + layout.first_unit(block);
    for (int64_t row = 0; row < active; ++row) {
      E* at = out + rows.sequence[row] * shape.T * stride;
      __builtin_prefetch(at + stride, 1);
      store_part(at, load(from + row * L), width);
    }
  }

  // The row has come to its end: its state is the last one, and is held in the steps that are ignored.
  void finish(int64_t row, E* state) {
    const int64_t sequence = rows.sequence[row], unit = layout.first_unit(begin);
    const int64_t units = (end < layout.blocks ? layout.first_unit(end) : layout.H) - unit;
    for (int64_t f = 0; f < shape.F; ++f) {
      E* last = static_cast<E*>(pass.call.last) + (sequence * shape.F + f) * layout.H;
      for (int64_t block = begin; block < end; ++block)
        store_part(last + layout.first_unit(block), load(this->state_of(state, f, block) + row * L), layout.width(block));
      if (!pass.call.states[f]) continue;
      E* over_time = static_cast<E*>(pass.call.states[f]) + sequence * shape.T * layout.H;
      for (int64_t t = rows.length[row]; t < shape.T; ++t) copy(over_time + t * layout.H + unit, last + unit, units);
    }
  }
};

// The owners of all tiles come first, so that a helper finds one that has begun, or has ended.
template <class Stored>
void ForwardPass<Stored>::tile(int64_t index) {
  const int64_t number = index % all_tiles(), group = number / tiles.count;
  const bool owner = index < all_tiles();
  const Rows rows(problem, group, number % tiles.count, tiles);
  if (rows.count == 0) return;
  const int64_t states = owner ? 2 * this->state_size(rows.count) : 0;
  Carver sizes{nullptr};
  Scratch(*this, rows.count, sizes);
  sizes.carve<E>(states);
  const ScopedMemory scoped(crew, sizes.used);
  if (!scoped.memory) {
    if (owner) this->give_up(number);
    return;
  }
  Carver carver{scoped.memory};
  Scratch scratch(*this, rows.count, carver);
  ForwardScan<Stored> scan(*this, rows, group, members > 1 ? this->gangs + number : nullptr, scratch);
  if (!owner) return scan.follow();
  E* zeros = carver.carve<E>(states);
  clear(zeros, states);
  scan.lead(zeros);
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
