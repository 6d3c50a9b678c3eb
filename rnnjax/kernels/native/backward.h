// The backward half: a tile of sequences back through time, and every gradient.
#pragma once

#include <new>

#include "pack.h"
#include "ring.h"
#include "sums.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

constexpr int64_t FIRST_RING_ROWS = 12;  // of the first section of a tile that several may share

template <class Stored>
struct BackwardPass {
  using E = Computed<Stored>;
  using A = Factor<Stored>;
  static constexpr int L = Vector<E>::lanes;
  const Backward& call;
  const Crew& crew;
  const Shape& shape;
  Tiles tiles;
  Layout<E> layout;
  int64_t parts;  // of the tiles of a group, each summed apart
  int64_t weight_groups, panel_groups;  // one, where all share what is packed
  int64_t members, batch;
  Gang* gangs;  // of each tile
  int64_t recurrent_size, input_size, sums_size;
  A *recurrent_panels, *input_panels;
  E *gains, *initial;
  char* sums;
  bool out_of_memory = false;

  BackwardPass(const Backward& call, const Crew& crew)
      : call(call), crew(crew), shape(call.problem.shape), tiles(shape, crew.threads), layout(call.problem, tiles.rows(shape, 0)) {
    parts = least(tiles.count, ceiling(crew.threads, shape.S));
    members = sharers(layout, tiles, crew.threads);
    batch = layout.batch(Runner<E>(call.problem.code).step, tiles.rows(shape, 0));
    recurrent_size = layout.blocks * recurrent_depth() * L;
    input_size = call.dxs ? layout.input_pieces * input_depth() * L : 0;
    sums_size = Sums<E>::size(layout, call);
    weight_groups = call.problem.W.stride || call.problem.R.stride || call.problem.gains.stride ||
                            call.problem.initial.stride ? shape.S : 1;
    panel_groups = call.problem.W.stride || call.problem.R.stride ? shape.S : 1;
  }

  bool run() {
    Carver sizes{nullptr};
    carve_weights(sizes);
    char* memory = static_cast<char*>(crew.take(crew.self, sizes.used));
    if (!memory) return false;
    Carver carver{memory};
    carve_weights(carver);
    crew.run(crew.self, weight_groups * (layout.blocks + (call.dxs ? layout.input_pieces : 0)),
             panel_groups * 2 * weights_work(layout),
             [](void* self, int64_t index) { static_cast<BackwardPass*>(self)->pack(index); }, this);
    for (int64_t tile = 0; members > 1 && tile < shape.S * parts; ++tile) new (gangs + tile) Gang;
    crew.run(crew.self, shape.S * parts * members, 2 * steps_work(layout),
             [](void* self, int64_t index) { static_cast<BackwardPass*>(self)->part(index); }, this);
    if (!sums_are_own() && !out_of_memory)
      crew.run(crew.self, shape.S * layout.blocks, shape.S * parts * weights_work(layout), [](void* self, int64_t index) {
        BackwardPass* pass = static_cast<BackwardPass*>(self);
        const int64_t group = index / pass->layout.blocks;
        Finish<E>{pass->layout, pass->call, pass->parts, group, index % pass->layout.blocks,
                  pass->sums + group * pass->parts * pass->sums_size}.run();
      }, this);
    crew.give(crew.self, memory);
    return !out_of_memory;
  }

  // Where a group is one part that nobody shares, its sums are made and written by one task, in memory of its own.
  bool sums_are_own() const { return parts == 1 && members == 1; }

  void carve_weights(Carver& carver) {
    gangs = carver.carve<Gang>(members > 1 ? shape.S * parts : 0);
    recurrent_panels = carver.carve<A>(panel_groups * recurrent_size);
    input_panels = carver.carve<A>(panel_groups * input_size);
    gains = carver.carve<E>(weight_groups * layout.blocks * shape.K * L);
    initial = carver.carve<E>(weight_groups * layout.blocks * shape.F * L);
    sums = carver.carve<char>(sums_are_own() ? 0 : shape.S * parts * sums_size);
  }

  int64_t ring_rows() const { return Ring<Stored>::ring_rows(shape, tiles.rows(shape, 0)); }
  int64_t recurrent_depth() const { return factors<A>(shape.D) * layout.recurrent.count; }
  int64_t input_depth() const { return shape.N * factors<A>(shape.D) * layout.input.count; }

  void pack(int64_t index) {
    const Problem& problem = call.problem;
    const int64_t each = layout.blocks + (call.dxs ? layout.input_pieces : 0);
    const int64_t group = index / each, at = index % each;
    if (at == 0) {
      pack_units(layout, group_of<E>(problem.gains, group), shape.K, gains + group * layout.blocks * shape.K * L);
      pack_units(layout, group_of<E>(problem.initial, group), shape.F, initial + group * layout.blocks * shape.F * L);
    }
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

  // What the members of a tile have in common.
  struct Common {
    Ring<Stored> ring;
    E* states;

    Common(const BackwardPass& pass, Carver& carver) : ring(pass.layout, pass.call, pass.tiles.rows(pass.shape, 0), carver) {
      states = carver.carve<E>(2 * pass.shape.F * pass.layout.blocks * pass.tiles.rows(pass.shape, 0) * L);
    }
  };

  // What one member works in.
  struct Scratch {
    E *before, *kept, *dcolumns, *dgains, *gains, *dx;
    Runner<E> runner;

    Scratch(const BackwardPass& pass, Carver& carver) : runner(pass.call.problem.code) {
      const Shape& shape = pass.shape;
      const int64_t tile = pass.batch * pass.tiles.rows(shape, 0) * L;
      dx = carver.carve<E>(pass.call.dxs ? MOST_VECTORS * pass.ring_rows() * L : 0);
      before = carver.carve<E>(shape.F * tile);
      kept = carver.carve<E>(shape.C * tile);
      dcolumns = carver.carve<E>(shape.C * tile);
      gains = carver.carve<E>(shape.K * tile);
      dgains = carver.carve<E>(shape.K * tile);
      runner.carve(carver);
    }
  };

  // The owners of all parts come first, so that a helper finds one that has begun, or has ended.
  void part(int64_t index) {
    if (index < shape.S * parts) {
      lead(index);
    } else {
      follow(index % (shape.S * parts));
    }
  }

  void lead(int64_t index) {
    const int64_t group = index / parts;
    Carver sizes{nullptr};
    Common(*this, sizes);
    Scratch(*this, sizes);
    const size_t own = sums_are_own() ? size_t(sums_size) : 0;
    char* memory = static_cast<char*>(crew.take(crew.self, sizes.used + own));
    if (!memory) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      if (members > 1) gangs[index].close({}, 0);
      return;
    }
    Carver carver{memory};
    Common common(*this, carver);
    Scratch scratch(*this, carver);
    char* summed = own ? memory + sizes.used : sums + index * sums_size;
    memset(summed, 0, size_t(sums_size));
    for (int64_t number = index % parts; number < tiles.count; number += parts) {
      const Rows rows(call.problem, group, number, tiles);
      if (rows.count) step_of(index, rows, scratch, summed).lead(&common);
    }
    if (own)
      for (int64_t block = 0; block < layout.blocks; ++block) Finish<E>{layout, call, parts, group, block, summed}.run();
    crew.give(crew.self, memory);
  }

  // Only where a part is one tile: there are fewer tiles than threads.
  void follow(int64_t index) {
    const Rows rows(call.problem, index / parts, index % parts, tiles);
    if (rows.count == 0) return;
    Carver sizes{nullptr};
    Scratch(*this, sizes);
    char* memory = static_cast<char*>(crew.take(crew.self, sizes.used));
    if (!memory) return;
    Carver carver{memory};
    Scratch scratch(*this, carver);
    step_of(index, rows, scratch, sums + index * sums_size).follow();
    crew.give(crew.self, memory);
  }

  // One tile on its way back through time, as far as one member goes with it.
  struct Step {
    const BackwardPass& pass;
    const Rows& rows;
    Scratch& scratch;
    Sums<E> sums;
    int64_t weight_group;
    Gang* gang;
    const Backward& call = pass.call;
    const Shape& shape = pass.shape;
    const Layout<E>& layout = pass.layout;
    const Common* common = nullptr;
    E *carry = nullptr, *next = nullptr;  // the cotangents of the state after a step and before it, in turns
    Member member = {};
    int64_t begin = 0, end = 0;  // the blocks of this member
    int64_t filled = 0;          // rows of the ring
    int64_t key = 0;             // of the section

    void lead(const Common* shared) {
      common = shared;
      clear(common->states, 2 * state_size());
      begin = 0, end = layout.blocks;
      carry = common->states;
      for (int64_t row = 0; row < rows.count; ++row) start(row);
      if (gang) gang->shared = const_cast<Common*>(common);
      for (int64_t t = rows.longest - 1; t >= 0;) {
        key = rows.longest - t;
        if (gang) member = gang->open(key);
        t = section(t);
      }
      if (gang) gang->close(member, key);
      if (call.dstate) write_state();
    }

    void follow() {
      const int64_t number = gang->join();
      while (number && gang->enter(number, &key, &member)) {
        common = static_cast<const Common*>(gang->shared);
        section(rows.longest - key);
        gang->done(member, key);
      }
    }

    void meet(int64_t phase) {
      if (gang) gang->meet(member, key, phase);
    }

    // How many rows a section may have: at first few, so that helpers need not wait long to join, then four times as many
    // as have been done. It does not depend on who has joined: sums over time must not differ from call to call.
    int64_t room() const {
      if (pass.members == 1) return pass.ring_rows();
      return least(most(FIRST_RING_ROWS, 4 * (key - 1) * rows.count), pass.ring_rows());
    }

    // Back from step t as far as the section has room. Returns where it stopped.
    int64_t section(int64_t t) {
      const int64_t room = this->room();
      const int64_t first = t, panels = ceiling(layout.head_blocks, layout.step_panel) * shape.N;
      begin = start_of_panel(member.begin(panels)), end = start_of_panel(member.end(panels));
      filled = 0;
      meet(0);
      for (; t >= 0 && (t == first || filled + rows.active(t) <= room); --t) {
        const int64_t active = rows.active(t);
        carry = common->states + ((rows.longest - 1 - t) & 1) * state_size();
        next = common->states + (~(rows.longest - 1 - t) & 1) * state_size();
        for (int64_t block = begin; block < end;) {
          const int64_t blocks = least(least(pass.batch, layout.head_blocks - block % layout.head_blocks), end - block);
          read(block, blocks, t, active);
          run_program(block, blocks, active);
          to_ring(block, blocks, active);
          block += blocks;
        }
        if (member.number == 0) rows_to_ring(t, active);
        swap_carry(active);
        meet(first - t + 1);
        through_recurrence(active);
        reset(t, active);
        filled += active;
      }
      empty_ring();
      return t;
    }

    int64_t state_size() const { return shape.F * layout.blocks * rows.count * L; }
    // The block where a panel of R transposed begins, by the number of the panel.
    int64_t start_of_panel(int64_t number) const {
      const int64_t each = ceiling(layout.head_blocks, layout.step_panel);
      return number / each * layout.head_blocks + layout.head_blocks * (number % each) / each;
    }

    E* state_of(E* state, int64_t field, int64_t block) const {
      return state + (field * layout.blocks + block) * rows.count * L;
    }
    E* tile_of(E* tile, int64_t number, int64_t blocks, int64_t u) const {
      return tile + (number * blocks + u) * rows.count * L;
    }
    const Ring<Stored>& ring() const { return common->ring; }

    // The cotangent of the last state, and of the steps that hold it.
    void start(int64_t row) {
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
          store(state_of(carry, f, block) + row * L, sum);
        }
    }

    // State before, kept columns, and the cotangent of the state after, for a batch of blocks. What the next step back
    // will read is asked for ahead: there are too many streams of memory for the processor to see that by itself.
    void read(int64_t block, int64_t blocks, int64_t t, int64_t active) {
      for (int64_t u = 0; u < blocks; ++u) {
        for (int64_t row = 0; row < active; ++row) read_before(block + u, blocks, u, t, row);
        const int64_t unit = layout.first_unit(block + u);
        const int width = layout.width(block + u);
        for (int64_t c = 0; c < shape.C; ++c) {
          const E* from = static_cast<const E*>(call.kept) + c * layout.H + unit;
          E* to = tile_of(scratch.kept, c, blocks, u);
          for (int64_t row = 0; row < active; ++row) {
            const E* at = from + (rows.sequence[row] * shape.T + t) * shape.C * layout.H;
            __builtin_prefetch(at - shape.C * layout.H, 0, 1);
            store(to + row * L, load_part(at, width));
          }
        }
        for (int64_t f = 0; f < shape.F; ++f) {
          if (!call.dstates[f]) continue;
          const E* from = static_cast<const E*>(call.dstates[f]) + unit;
          E* to = state_of(carry, f, block + u);
          for (int64_t row = 0; row < active; ++row) {
            const E* at = from + (rows.sequence[row] * shape.T + t) * layout.H;
            __builtin_prefetch(at - layout.H, 0, 1);
            store(to + row * L, load(to + row * L) + load_part(at, width));
          }
        }
      }
    }

    bool is_reset(int64_t row, int64_t t) const {
      const uint8_t* resets = call.problem.resets;
      return resets && resets[rows.sequence[row] * shape.T + t];
    }

    void read_before(int64_t block, int64_t blocks, int64_t u, int64_t t, int64_t row) {
      const int64_t sequence = rows.sequence[row], unit = layout.first_unit(block);
      const int width = layout.width(block);
      const bool fresh = is_reset(row, t);
      for (int64_t f = 0; f < shape.F; ++f) {
        V<E> value;
        if (fresh) {
          value = load(pass.initial + ((weight_group * shape.F + f) * layout.blocks + block) * L);
        } else if (t == 0) {
          value = load_part(static_cast<const E*>(call.problem.state) + (sequence * shape.F + f) * layout.H + unit, width);
        } else {
          const E* at = static_cast<const E*>(call.states[f]) + (sequence * shape.T + t - 1) * layout.H + unit;
          __builtin_prefetch(at - layout.H, 0, 1);
          value = load_part(at, width);
        }
        store(tile_of(scratch.before, f, blocks, u) + row * L, value);
        if (f == 0) ring().put_h(block, filled + row, value);
      }
    }

    void run_program(int64_t block, int64_t blocks, int64_t active) {
      E *inputs[MOST_COLUMNS + 2 * MOST_FIELDS + MOST_GAINS], *outputs[MOST_COLUMNS + MOST_FIELDS + MOST_GAINS];
      int64_t in = 0, out = 0;
      for (int64_t c = 0; c < shape.C; ++c) inputs[in++] = tile_of(scratch.kept, c, blocks, 0);
      for (int64_t f = 0; f < shape.F; ++f) inputs[in++] = tile_of(scratch.before, f, blocks, 0);
      for (int64_t f = 0; f < shape.F; ++f) inputs[in++] = state_of(carry, f, block);
      for (int64_t k = 0; k < shape.K; ++k) {
        E* to = inputs[in++] = tile_of(scratch.gains, k, blocks, 0);
        for (int64_t u = 0; u < blocks; ++u)
          fill(to + u * rows.count * L,
               load(pass.gains + ((weight_group * shape.K + k) * layout.blocks + block + u) * L), rows.count);
      }
      for (int64_t c = 0; c < shape.C; ++c) outputs[out++] = tile_of(scratch.dcolumns, c, blocks, 0);
      for (int64_t f = 0; f < shape.F; ++f) outputs[out++] = state_of(next, f, block);
      for (int64_t k = 0; k < shape.K; ++k) outputs[out++] = tile_of(scratch.dgains, k, blocks, 0);
      scratch.runner.run(inputs, outputs, out, blocks, rows.count * L, active * L);
    }

    void to_ring(int64_t block, int64_t blocks, int64_t active) {
      for (int64_t u = 0; u < blocks; ++u) {
        for (int64_t c = 0; c < shape.C; ++c)
          ring().put_d(block + u, c, filled, tile_of(scratch.dcolumns, c, blocks, u), active);
        for (int64_t k = 0; k < shape.K; ++k) {
          const E* from = tile_of(scratch.dgains, k, blocks, u);
          E* to = sums.gains + (k * layout.blocks + block + u) * L;
          V<E> sum = load(to);
          for (int64_t row = 0; row < active; ++row) sum += load(from + row * L);
          store(to, sum);
        }
      }
    }

    // What has just been made is the carry of the running rows; rows that have not begun keep theirs.
    void swap_carry(int64_t active) {
      for (int64_t f = 0; f < shape.F && active < rows.count; ++f)
        for (int64_t block = begin; block < end; ++block)
          copy(state_of(next, f, block) + active * L, state_of(carry, f, block) + active * L, (rows.count - active) * L);
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
          for (int v = 0; v < vectors; ++v) out[v] = state_of(carry, 0, first + v);
          const A* panels = pass.recurrent_panels + weight_group % pass.panel_groups * pass.recurrent_size;
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
        const Stored* from = static_cast<const Stored*>(call.problem.xs) + step * shape.I;
        for (int64_t piece = 0; piece < layout.input_pieces; ++piece)
          ring().put_x(piece, filled + row, load_part(from + piece * L, layout.input_width(piece)));
      }
    }

    // Before a reset the state is the initial one: its cotangent goes there, and no further back.
    void reset(int64_t t, int64_t active) {
      for (int64_t row = 0; row < active; ++row) {
        if (!is_reset(row, t)) continue;
        for (int64_t f = 0; f < shape.F; ++f)
          for (int64_t block = begin; block < end; ++block) {
            E *from = state_of(carry, f, block) + row * L, *to = sums.initial + (f * layout.blocks + block) * L;
            store(to, load(to) + load(from));
            store(from, V<E>{});
          }
      }
    }

    // The products over the rows of the ring: weight gradients, and the cotangents of the inputs. Members take panels in
    // turns. The rows are theirs to read until the next section begins.
    void empty_ring() {
      int64_t turn = 0;
      const auto is_own = [&] { return turn++ % member.members == member.number; };
      for (int64_t start = 0; call.dR && start < layout.blocks; start += layout.head_blocks)
        for_panels(layout.sum_panel, start, layout.head_blocks, layout.recurrent.count, [&](int64_t first, int vectors) {
          if (!is_own()) return;
          ring().correlate_panel(layout.recurrent, first, vectors, ring().h + start * ring().size(), shape.D, filled, sums.R);
        });
      if (call.dW || call.db)
        for_panels(layout.sum_panel, 0, layout.blocks, layout.input.count, [&](int64_t first, int vectors) {
          if (!is_own()) return;
          if (call.dW) ring().correlate_panel(layout.input, first, vectors, ring().x, shape.I, filled, sums.W);
          if (call.db) ring().correlate_panel(layout.input, first, vectors, ring().ones, 1, filled, sums.b);
        });
      for_panels(layout.sum_panel, 0, call.dxs ? layout.input_pieces : 0, 1, [&](int64_t first, int vectors) {
        if (is_own()) make_dxs(first, vectors);
      });
    }

    // Of some pieces of the inputs. Heads end in blocks that are not whole, so the columns are taken head by head.
    void make_dxs(int64_t first, int vectors) {
      E* out[MOST_VECTORS];
      for (int v = 0; v < vectors; ++v) out[v] = scratch.dx + v * ring().rows * L;
      clear(scratch.dx, vectors * ring().rows * L);
      const A* panels = pass.input_panels + weight_group % pass.panel_groups * pass.input_size;
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
                       load(state_of(carry, f, block) + row * L), layout.width(block));
    }
  };

  Step step_of(int64_t index, const Rows& rows, Scratch& scratch, char* summed) const {
    Carver carver{summed};
    return {*this, rows, scratch, Sums<E>(layout, call, carver), index / parts * (weight_groups > 1),
            members > 1 ? gangs + index : nullptr};
  }
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
