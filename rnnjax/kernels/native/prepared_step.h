// One step of prepared weights, for some blocks of units: products, the vector program, and what is written.
#pragma once

#include "prepared.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

template <class Stored, class E>
struct PreparedPass<Stored, E>::Step {
  const PreparedPass& pass;
  Scratch& scratch;
  const int64_t group, t, first, last;  // blocks
  const Shape& shape = pass.shape;
  const Problem& problem = pass.call.problem;

  Step(const PreparedPass& pass, Scratch& scratch, int64_t group, int64_t t, int64_t first, int64_t last)
      : pass(pass), scratch(scratch), group(group), t(t), first(first), last(last) {}

  void run() const {
    if (t < 0) return load_state();
    if (t % pass.section == 0) multiply_input();
    multiply_state();
    run_program();
    for (int64_t b = 0; b < shape.B; ++b) finish_row(b);
  }

  // Where a row's vector of all units is: of a state before step `at`, of pre-activations, of `us`.
  E* state_of(int64_t at, int64_t field, int64_t b) const {
    return pass.states + (((at & 1) * shape.F + field) * shape.B + b) * pass.units;
  }
  E* pre_activation_of(int64_t c, int64_t b) const { return pass.pre_activations + (c * shape.B + b) * pass.units; }
  E* unit_parameter_of(int64_t k, int64_t b) const { return pass.unit_parameters + (k * shape.B + b) * pass.units; }
  E* us_of(int64_t gate, int64_t row) const {
    return pass.us + (gate * pass.section * shape.B + row) * pass.units;
  }

  int64_t length(int64_t b) const {
    return problem.length ? most(0, least(problem.length[group * shape.B + b], shape.T)) : shape.T;
  }
  bool is_reset(int64_t b, int64_t at) const {
    return problem.resets && at < length(b) && problem.resets[(group * shape.B + b) * shape.T + at];
  }

  // Vectors [H] of units as the caller has them: where a block's begin, how many of them a part of the block has.
  int64_t unit_of(int64_t block) const { return block / pass.head_blocks * shape.D + block % pass.head_blocks * U; }
  int width(int64_t block, int64_t part) const {
    return int(most(0, least(L, shape.D - block % pass.head_blocks * U - part * L)));
  }
  V<E> vector_of(const E* units, int64_t block, int64_t part) const {
    return load_part(units + unit_of(block) + part * L, width(block, part));
  }
  // Calls act(offset in a row, block, part) for the vectors of these blocks.
  template <class Act>
  void each_vector(Act act) const {
    for (int64_t block = first; block < last; ++block)
      for (int64_t part = 0; part < PARTS; ++part) act(block * U + part * L, block, part);
  }
  void give(E* to, const E* row) const {
    each_vector([&](int64_t at, int64_t block, int64_t part) {
      store_part(to + unit_of(block) + part * L, load(row + at), width(block, part));
    });
  }

  const E* initial(int64_t field) const { return group_of<E>(problem.initial, group) + field * pass.H; }
  E* last_of(int64_t field, int64_t b) const {
    return static_cast<E*>(pass.call.last) + ((group * shape.B + b) * shape.F + field) * pass.H;
  }

  void load_state() const {
    for (int64_t b = 0; b < shape.B; ++b) {
      for (int64_t f = 0; f < shape.F; ++f) {
        const E* given = static_cast<const E*>(problem.state) + ((group * shape.B + b) * shape.F + f) * pass.H;
        const E* from = is_reset(b, 0) ? initial(f) : given;
        E* to = state_of(0, f, b);
        each_vector([&](int64_t at, int64_t block, int64_t part) { store(to + at, vector_of(from, block, part)); });
        if (length(b) == 0) give(last_of(f, b), to);
      }
      for (int64_t k = 0; k < shape.K; ++k) {
        const E* from = group_of<E>(problem.unit_parameters, group) + k * pass.H;
        E* to = unit_parameter_of(k, b);
        each_vector([&](int64_t at, int64_t block, int64_t part) { store(to + at, vector_of(from, block, part)); });
      }
    }
  }

  // The sums of one block, scaled where weights are: put(row of `scratch.rows`, gate, offset in a row, block, part, sum).
  template <class Put>
  void multiply(const Shared& weight, const Shared& scale, int64_t depth, int64_t block, int64_t rows, Put put) const {
    const Stored* panel = group_of<Stored>(weight, group) + block * depth * shape.G * U;
    const E* scales = scale.data ? group_of<E>(scale, group) : nullptr;
    prepared_product<Stored, E>(panel, shape.G * PARTS, depth, scratch.rows, rows, [&](int64_t row, int64_t v, V<E> sum) {
      const int64_t gate = v / PARTS, part = v % PARTS;
      if (scales) sum *= vector_of(scales + gate * pass.H, block, part);
      put(row, gate, block * U + part * L, block, part, sum);
    });
  }

  // us = W x + b of all steps of the section that begins here.
  void multiply_input() const {
    const E* xs = static_cast<const E*>(problem.xs) + group * shape.B * shape.T * shape.I;
    const E* bias = group_of<E>(problem.b, group);
    int64_t rows = 0;
    for (int64_t at = t; at < least(t + pass.section, shape.T); ++at)
      for (int64_t b = 0; b < shape.B; ++b) {
        if (at >= length(b)) continue;
        scratch.rows[rows] = xs + (b * shape.T + at) * shape.I;
        scratch.us_row[rows++] = (at - t) * shape.B + b;
      }
    for (int64_t block = first; block < last; ++block)
      multiply(problem.W, pass.call.W_scale, shape.I, block, rows,
               [&](int64_t row, int64_t gate, int64_t at, int64_t block, int64_t part, V<E> sum) {
                 store(us_of(gate, scratch.us_row[row]) + at, sum + vector_of(bias + gate * pass.H, block, part));
               });
  }

  // The pre-activations: R h, and us where they take it.
  void multiply_state() const {
    const int64_t section_row = t % pass.section * shape.B;
    for (int64_t block = first; block < last; ++block) {
      int64_t rows = 0;
      for (int64_t b = 0; b < shape.B; ++b) {
        if (t >= length(b)) continue;
        scratch.rows[rows] = state_of(t, 0, b) + block / pass.head_blocks * pass.head_blocks * U;
        scratch.sequence[rows++] = b;
      }
      multiply(problem.R, pass.call.R_scale, shape.D, block, rows,
               [&](int64_t row, int64_t gate, int64_t at, int64_t, int64_t, V<E> sum) {
                 const int64_t b = scratch.sequence[row];
                 const V<E> u = load(us_of(gate, section_row + b) + at);
                 const int input = pass.input_of[gate], recurrent = pass.recurrent_of[gate];
                 store(pre_activation_of(recurrent, b) + at, input == recurrent ? sum + u : sum);
                 if (input != recurrent) store(pre_activation_of(input, b) + at, u);
               });
    }
  }

  void run_program() const {
    E *inputs[MOST_PRE_ACTIVATIONS + MOST_FIELDS + MOST_UNIT_PARAMETERS], *outputs[MOST_FIELDS];
    for (int64_t b = 0; b < shape.B; ++b) {
      if (t >= length(b)) continue;
      int64_t in = 0;
      for (int64_t c = 0; c < shape.C; ++c) inputs[in++] = pre_activation_of(c, b) + first * U;
      for (int64_t f = 0; f < shape.F; ++f) inputs[in++] = state_of(t, f, b) + first * U;
      for (int64_t k = 0; k < shape.K; ++k) inputs[in++] = unit_parameter_of(k, b) + first * U;
      for (int64_t f = 0; f < shape.F; ++f) outputs[f] = state_of(t + 1, f, b) + first * U;
      scratch.runner.run(inputs, outputs, shape.F, 1, 0, (last - first) * U);
    }
  }

  // Results of this step, and the state that the next one sees: an ignored step hands on the one before.
  void finish_row(int64_t b) const {
    for (int64_t f = 0; f < shape.F; ++f) {
      E* after = state_of(t + 1, f, b);
      if (t >= length(b)) copy(after + first * U, state_of(t, f, b) + first * U, (last - first) * U);
      if (pass.call.states[f])
        give(static_cast<E*>(pass.call.states[f]) + ((group * shape.B + b) * shape.T + t) * pass.H, after);
      if (t + 1 == length(b)) give(last_of(f, b), after);
      if (t + 1 < shape.T && is_reset(b, t + 1))
        each_vector([&](int64_t at, int64_t block, int64_t part) {
          store(after + at, vector_of(initial(f), block, part));
        });
    }
  }
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
