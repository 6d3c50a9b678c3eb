// The steps of the backward half: one tile of sequences back through time, and every gradient.
#pragma once

#include "backward.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

constexpr int64_t FIRST_RING_ROWS = 12;  // of the first section of a tile that several may share

template <class Stored>
struct BackwardScan : TileScan<Stored> {
  using Base = TileScan<Stored>;
  using typename Base::E;
  using A = Factor<Stored>;
  using Common = typename BackwardPass<Stored>::Common;
  using Scratch = typename BackwardPass<Stored>::Scratch;
  using Base::L;
  using Base::rows;
  using Base::shape;
  using Base::layout;
  using Base::group;
  using Base::gang;
  using Base::member;
  using Base::begin;
  using Base::end;
  const BackwardPass<Stored>& pass;
  Scratch& scratch;
  Sums<E> sums;
  const Backward& call = pass.call;
  const Common* common = nullptr;
  E *carry = nullptr, *next = nullptr;  // the cotangents of the state after a step and before it, in turns
  int64_t filled = 0;                   // rows of the ring

  BackwardScan(const BackwardPass<Stored>& pass, const Rows& rows, int64_t index, Scratch& scratch, char* summed)
      : Base(pass, rows, index / pass.parts, pass.members > 1 ? pass.gangs + index : nullptr),
        pass(pass), scratch(scratch), sums(sums_at(pass, summed)) {}
  static Sums<E> sums_at(const BackwardPass<Stored>& pass, char* summed) {
    Carver carver{summed};
    return Sums<E>(pass.layout, pass.call, carver);
  }

  void lead(Common* shared) {
    common = shared;
    clear(common->states, 2 * pass.state_size(rows.count));
    carry = common->states;
    for (int64_t row = 0; row < rows.count; ++row) load_last(row);
    if (gang) gang->shared = shared;
    this->lead_through([&](int64_t done) { return section(done); });
    if (call.dstate) write_state();
  }
  void follow() {
    this->follow_through([&](int64_t done) {
      common = static_cast<const Common*>(gang->shared);
      section(done);
    });
  }

  // How many rows a section may have: at first few, so that helpers need not wait long to join, then four times as many
  // as have been done. It does not depend on who has joined: sums over time must not differ from call to call.
  int64_t room(int64_t done) const {
    if (pass.members == 1) return pass.ring_rows();
    return least(most(FIRST_RING_ROWS, 4 * done * rows.count), pass.ring_rows());
  }

  // Back from where `done` steps of the longest sequence are done, as far as there is room. Returns how many are done then.
  int64_t section(int64_t done) {
    const int64_t room = this->room(done), first = rows.longest - 1 - done;
    const int64_t panels = ceiling(layout.head_blocks, layout.step_panel) * shape.N;
    begin = start_of_panel(member.begin(panels)), end = start_of_panel(member.end(panels));
    filled = 0;
    this->meet(0);
    int64_t t = first;
    for (; t >= 0 && (t == first || filled + rows.active(t) <= room); --t) step(t, first - t + 1);
    make_gradients();
    return rows.longest - 1 - t;
  }

  void step(int64_t t, int64_t phase) {
    const int64_t active = rows.active(t), size = pass.state_size(rows.count);
    carry = common->states + ((rows.longest - 1 - t) & 1) * size;
    next = common->states + (~(rows.longest - 1 - t) & 1) * size;
    for (int64_t block = begin; block < end;) {
      const int64_t blocks = least(least(pass.batch, layout.head_blocks - block % layout.head_blocks), end - block);
      read(block, blocks, t, active);
      run_program(block, blocks, active);
      to_ring(block, blocks, active);
      block += blocks;
    }
    if (member.number == 0) rows_to_ring(t, active);
    swap_carry(active);
    this->meet(phase);
    through_recurrence(active);
    reset(t, active);
    filled += active;
  }

  // The block where a panel of R transposed begins, by the number of the panel.
  int64_t start_of_panel(int64_t number) const {
    const int64_t each = ceiling(layout.head_blocks, layout.step_panel);
    return number / each * layout.head_blocks + layout.head_blocks * (number % each) / each;
  }
  const Ring<Stored>& ring() const { return common->ring; }

  // The cotangent of the last state, and of the steps that hold it.
  void load_last(int64_t row) {
    const int64_t sequence = rows.sequence[row];
    if (call.dxs)
      clear(static_cast<Stored*>(call.dxs) + (sequence * shape.T + rows.length[row]) * shape.I,
            (shape.T - rows.length[row]) * shape.I);
    for (int64_t f = 0; f < shape.F; ++f)
      for (int64_t block = 0; block < layout.blocks; ++block) {
        const int64_t unit = layout.first_unit(block);
        const int width = layout.width(block);
        V<E> sum = {};
        if (call.dlast)
          sum = load_part(static_cast<const E*>(call.dlast) + (sequence * shape.F + f) * layout.H + unit, width);
        if (call.dstates[f])
          for (int64_t t = rows.length[row]; t < shape.T; ++t)
            sum += load_part(static_cast<const E*>(call.dstates[f]) + (sequence * shape.T + t) * layout.H + unit, width);
        store(this->state_of(carry, f, block) + row * L, sum);
      }
  }

  // State before, residuals, and the cotangent of the state after, for a batch of blocks. What the next step back will
  // read is asked for ahead: there are too many streams of memory for the processor to see that by itself.
  void read(int64_t block, int64_t blocks, int64_t t, int64_t active) {
    for (int64_t u = 0; u < blocks; ++u) {
      for (int64_t row = 0; row < active; ++row) read_before(block + u, blocks, u, t, row);
      for (int64_t c = 0; c < shape.C; ++c) {
        E* to = this->batch_of(scratch.residuals, c, blocks, u);
        read_rows(call.residuals, shape.C, c, block + u, t, active, [&](int64_t row, V<E> value) {
          store(to + row * L, value);
        });
      }
      for (int64_t f = 0; f < shape.F; ++f) {
        if (!call.dstates[f]) continue;
        E* to = this->state_of(carry, f, block + u);
        read_rows(call.dstates[f], 1, 0, block + u, t, active, [&](int64_t row, V<E> value) {
          store(to + row * L, load(to + row * L) + value);
        });
      }
    }
  }
  // Of vector `number` of the `count` that there are of each step.
  template <class Act>
  void read_rows(const void* from, int64_t count, int64_t number, int64_t block, int64_t t, int64_t active, Act act) {
    const int64_t stride = count * layout.H;
    const int width = layout.width(block);
    const E* in = static_cast<const E*>(from) + t * stride + number * layout.H + layout.first_unit(block);
    for (int64_t row = 0; row < active; ++row) {
      const E* at = in + rows.sequence[row] * shape.T * stride;
      __builtin_prefetch(at - stride, 0, 1);
      act(row, load_part(at, width));
    }
  }

  void read_before(int64_t block, int64_t blocks, int64_t u, int64_t t, int64_t row) {
    const int64_t sequence = rows.sequence[row], unit = layout.first_unit(block);
    const int width = layout.width(block);
    const bool reset = this->is_reset(row, t);
    for (int64_t f = 0; f < shape.F; ++f) {
      V<E> value;
      if (reset) {
        value = this->initial_of(f, block);
      } else if (t == 0) {
        value = load_part(static_cast<const E*>(pass.problem.state) + (sequence * shape.F + f) * layout.H + unit, width);
      } else {
        const E* at = static_cast<const E*>(call.states[f]) + (sequence * shape.T + t - 1) * layout.H + unit;
        __builtin_prefetch(at - layout.H, 0, 1);
        value = load_part(at, width);
      }
      store(this->batch_of(scratch.before, f, blocks, u) + row * L, value);
      if (f == 0) ring().put_h(block, filled + row, value);
    }
  }

  void run_program(int64_t block, int64_t blocks, int64_t active) {
    E* inputs[MOST_PRE_ACTIVATIONS + 2 * MOST_FIELDS + MOST_UNIT_PARAMETERS];
    E* outputs[MOST_PRE_ACTIVATIONS + MOST_FIELDS + MOST_UNIT_PARAMETERS];
    int64_t in = 0, out = 0;
    for (int64_t c = 0; c < shape.C; ++c) inputs[in++] = this->batch_of(scratch.residuals, c, blocks, 0);
    for (int64_t f = 0; f < shape.F; ++f) inputs[in++] = this->batch_of(scratch.before, f, blocks, 0);
    for (int64_t f = 0; f < shape.F; ++f) inputs[in++] = this->state_of(carry, f, block);
    this->broadcast_unit_parameters(scratch.unit_parameters, block, blocks, inputs + in);
    for (int64_t c = 0; c < shape.C; ++c) outputs[out++] = this->batch_of(scratch.dpre_activations, c, blocks, 0);
    for (int64_t f = 0; f < shape.F; ++f) outputs[out++] = this->state_of(next, f, block);
    for (int64_t k = 0; k < shape.K; ++k) outputs[out++] = this->batch_of(scratch.dunit_parameters, k, blocks, 0);
    scratch.runner.run(inputs, outputs, out, blocks, rows.count * L, active * L);
  }

  void to_ring(int64_t block, int64_t blocks, int64_t active) {
    for (int64_t u = 0; u < blocks; ++u) {
      for (int64_t c = 0; c < shape.C; ++c)
        ring().put_d(block + u, c, filled, this->batch_of(scratch.dpre_activations, c, blocks, u), active);
      for (int64_t k = 0; k < shape.K; ++k) {
        const E* from = this->batch_of(scratch.dunit_parameters, k, blocks, u);
        E* to = sums.unit_parameters + (k * layout.blocks + block + u) * L;
        V<E> sum = load(to);
        for (int64_t row = 0; row < active; ++row) sum += load(from + row * L);
        store(to, sum);
      }
    }
  }

  // What has just been made is the carry of the active rows; rows that have not begun keep theirs.
  void swap_carry(int64_t active) {
    for (int64_t f = 0; f < shape.F && active < rows.count; ++f)
      for (int64_t block = begin; block < end; ++block)
        copy(this->state_of(next, f, block) + active * L, this->state_of(carry, f, block) + active * L,
             (rows.count - active) * L);
    E* swapped = carry;
    carry = next;
    next = swapped;
  }

  // dh += R^T dv
  void through_recurrence(int64_t active) {
    for (int64_t start = 0; start < layout.blocks; start += layout.head_blocks) {
      Pieces<A> parts[2];
      ring().parts_of_recurrent(parts, start, filled);
      for_panels(layout.step_panel, start, layout.head_blocks, 1, [&](int64_t first, int vectors) {
        if (first < begin || first >= end) return;
        E* out[MOST_VECTORS];
        for (int v = 0; v < vectors; ++v) out[v] = this->state_of(carry, 0, first + v);
        const A* panels = pass.recurrent_panels + group % pass.panel_groups * pass.recurrent_size;
        multiply_all(parts, 1, active, panel_of(panels, first, pass.recurrent_depth()), out, vectors);
      });
    }
  }

  // Which step each row of the ring is, and its input.
  void rows_to_ring(int64_t t, int64_t active) {
    for (int64_t row = 0; row < active; ++row) {
      const int64_t step = rows.sequence[row] * shape.T + t;
      ring().step[filled + row] = step;
      if (!call.dW) continue;
      const Stored* from = static_cast<const Stored*>(pass.problem.xs) + step * shape.I;
      for (int64_t piece = 0; piece < layout.input_pieces; ++piece)
        ring().put_x(piece, filled + row, load_part(from + piece * L, layout.input_width(piece)));
    }
  }

  // Before a reset the state is the initial one: its cotangent goes there, and no further back.
  void reset(int64_t t, int64_t active) {
    for (int64_t row = 0; row < active; ++row) {
      if (!this->is_reset(row, t)) continue;
      for (int64_t f = 0; f < shape.F; ++f)
        for (int64_t block = begin; block < end; ++block) {
          E *from = this->state_of(carry, f, block) + row * L, *to = sums.initial + (f * layout.blocks + block) * L;
          store(to, load(to) + load(from));
          store(from, V<E>{});
        }
    }
  }

  // The products over the rows of the ring: weight gradients, and the cotangents of the inputs. Members take panels in
  // turns. The rows are theirs to read until the next section begins.
  void make_gradients() {
    int64_t turn = 0;
    const auto is_own = [&] { return turn++ % member.members == member.number; };
    const Fill &recurrent = layout.recurrent, &input = layout.input;
    for (int64_t start = 0; call.dR && start < layout.blocks; start += layout.head_blocks)
      for_panels(layout.sum_panel, start, layout.head_blocks, recurrent.count, [&](int64_t first, int vectors) {
        if (is_own())
          ring().add_weight_gradient(recurrent, first, vectors, ring().h + start * ring().size(), shape.D, filled, sums.R);
      });
    if (call.dW || call.db)
      for_panels(layout.sum_panel, 0, layout.blocks, input.count, [&](int64_t first, int vectors) {
        if (!is_own()) return;
        if (call.dW) ring().add_weight_gradient(input, first, vectors, ring().x, shape.I, filled, sums.W);
        if (call.db) ring().add_weight_gradient(input, first, vectors, ring().ones, 1, filled, sums.b);
      });
    for_panels(layout.sum_panel, 0, pass.input_pieces(), 1, [&](int64_t first, int vectors) {
      if (is_own()) make_dxs(first, vectors);
    });
  }

  // Of some pieces of the inputs. Heads end in blocks that are not whole, so the pre-activations are taken head by head.
  void make_dxs(int64_t first, int vectors) {
    E* out[MOST_VECTORS];
    for (int v = 0; v < vectors; ++v) out[v] = scratch.dx + v * ring().rows * L;
    clear(scratch.dx, vectors * ring().rows * L);
    const A* panels = pass.input_panels + group % pass.panel_groups * pass.input_size;
    const A* panel = panel_of(panels, first, pass.input_depth());
    for (int64_t start = 0; start < layout.blocks; start += layout.head_blocks) {
      Pieces<A> parts[2];
      ring().parts_of_input(parts, start);
      multiply_all(parts, 1, filled, panel, out, vectors);
      panel += factors<A>(shape.D) * layout.input.count * vectors * L;
    }
    for (int v = 0; v < vectors; ++v)
      for (int64_t row = 0; row < filled; ++row)
        store_part(static_cast<Stored*>(call.dxs) + ring().step[row] * shape.I + (first + v) * L,
                   load(out[v] + row * L), layout.input_width(first + v));
  }

  void write_state() {
    for (int64_t row = 0; row < rows.count; ++row)
      for (int64_t f = 0; f < shape.F; ++f)
        for (int64_t block = 0; block < layout.blocks; ++block)
          store_part(static_cast<E*>(call.dstate) + (rows.sequence[row] * shape.F + f) * layout.H +
                         layout.first_unit(block),
                     load(this->state_of(carry, f, block) + row * L), layout.width(block));
  }
};

// All tiles of one part, as their owner.
template <class Stored>
void BackwardPass<Stored>::lead(int64_t index) {
  const int64_t group = index / parts;
  Carver sizes{nullptr};
  Common(*this, sizes);
  Scratch(*this, sizes);
  const size_t own = sums_are_own() ? size_t(sums_size) : 0;
  const ScopedMemory scoped(crew, sizes.used + own);
  if (!scoped.memory) return this->give_up(index);
  Carver carver{scoped.memory};
  Common common(*this, carver);
  Scratch scratch(*this, carver);
  char* summed = own ? scoped.memory + sizes.used : sums + index * sums_size;
  memset(summed, 0, size_t(sums_size));
  for (int64_t number = index % parts; number < tiles.count; number += parts) {
    const Rows rows(problem, group, number, tiles);
    if (rows.count) BackwardScan<Stored>(*this, rows, index, scratch, summed).lead(&common);
  }
  for (int64_t block = 0; own && block < layout.blocks; ++block)
    Finish<E>{layout, call, parts, group, block, summed}.run();
}

// Only where a part is one tile: there are fewer tiles than threads.
template <class Stored>
void BackwardPass<Stored>::follow(int64_t index) {
  const Rows rows(problem, index / parts, index % parts, tiles);
  if (rows.count == 0) return;
  Carver sizes{nullptr};
  Scratch(*this, sizes);
  const ScopedMemory scoped(crew, sizes.used);
  if (!scoped.memory) return;
  Carver carver{scoped.memory};
  Scratch scratch(*this, carver);
  BackwardScan<Stored>(*this, rows, index, scratch, sums + index * sums_size).follow();
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
