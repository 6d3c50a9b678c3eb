// The forward half on prepared weights: nothing is packed, few rows are multiplied, and whoever is there shares each step.
#pragma once

#include "pass.h"
#include "prepared_product.h"
#include "spin.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

constexpr int64_t PREPARED_AHEAD = 32;      // rows of W's product that are made together, over time
constexpr int64_t PREPARED_SHARE = 131072;  // multiplications of a step, at least, for each of several cores
constexpr int64_t PREPARED_BYTES = 80;      // of weights that a core reads in a nanosecond, at most

// All steps of all groups are stages, one after the other; the first stage of a group loads its states. A stage is cut into
// tickets, each a few blocks of units, which are handed out in order from one counter. So a thread that comes late takes
// part from where the others are, and none waits for one that does not come. Every other step goes through the blocks from
// the last to the first: where the weights are larger than a cache, it still holds those that were read last.
template <class Stored, class E>
struct PreparedPass {
  static constexpr int64_t L = Vector<E>::lanes, U = PREPARED_UNITS, PARTS = U / L;
  const Prepared& call;
  const Crew& crew;
  const Shape& shape = call.problem.shape;
  int64_t H = shape.N * shape.D, head_blocks = ceiling(shape.D, U), blocks = shape.N * head_blocks, units = blocks * U;
  int64_t section = most(1, least(shape.T, PREPARED_AHEAD / most(1, shape.B)));  // steps of W's product
  int64_t members, ticket_blocks, tickets;                                       // of a stage
  int input_of[MOST_PRE_ACTIVATIONS], recurrent_of[MOST_PRE_ACTIVATIONS];        // pre-activations of a gate
  E *states = nullptr, *pre_activations = nullptr, *unit_parameters = nullptr, *us = nullptr;
  Carver scratch = {};  // of the members
  int64_t next = 0, done = 0;
  static inline int64_t all_steps = 0;  // of all calls
  int64_t steps_before;

  PreparedPass(const Prepared& call, const Crew& crew) : call(call), crew(crew) {
    const int64_t step = shape.B * H * shape.G * (shape.I + shape.D);
    members = most(1, least(least(crew.threads, blocks), step / PREPARED_SHARE));
    ticket_blocks = most(1, least(8, blocks / (members > 1 ? 8 * members : 1)));
    tickets = ceiling(blocks, ticket_blocks);
    steps_before = __atomic_fetch_add(&all_steps, shape.T, __ATOMIC_RELAXED);
    for (int c = 0; c < shape.C; ++c) {
      const PreActivation& pre_activation = call.problem.pre_activations[c];
      if (pre_activation.input) input_of[pre_activation.gate] = c;
      if (pre_activation.recurrent) recurrent_of[pre_activation.gate] = c;
    }
  }

  bool run() {
    Carver sizes{nullptr};
    carve(sizes);
    const ScopedMemory scoped(crew, sizes.used);
    if (!scoped.memory) return false;
    Carver carver{scoped.memory};
    carve(carver);
    const int64_t read = blocks * U * shape.G * (shape.I + shape.D) * int64_t(sizeof(Stored));
    crew.run(crew.self, members, shape.S * shape.T * read / PREPARED_BYTES,
             [](void* self, int64_t member) { static_cast<PreparedPass*>(self)->work(member); }, this);
    return true;
  }

  // What one member works in, beside what is shared.
  struct Scratch {
    Runner<E> runner;
    const E** rows;     // of a product
    int64_t* sequence;  // of each of them, and its row of `us`
    int64_t* us_row;

    Scratch(const PreparedPass& pass, Carver& carver) : runner(pass.call.problem.code) {
      const int64_t most_rows = pass.section * pass.shape.B;
      rows = carver.carve<const E*>(most_rows);
      sequence = carver.carve<int64_t>(most_rows);
      us_row = carver.carve<int64_t>(most_rows);
      runner.carve(carver);
    }
  };

  void carve(Carver& carver) {
    const int64_t row = shape.B * units;
    states = carver.carve<E>(2 * shape.F * row);  // before and after a step, in turns
    pre_activations = carver.carve<E>(shape.C * row);
    unit_parameters = carver.carve<E>(shape.K * row);
    us = carver.carve<E>(shape.G * section * row);
    if (pre_activations) clear(pre_activations, shape.C * row);
    scratch = carver;
    carver.used += members * scratch_bytes();
  }
  size_t scratch_bytes() const {
    Carver sizes{nullptr};
    Scratch(*this, sizes);
    return sizes.used;
  }

  void work(int64_t member) {
    Carver carver = scratch;
    carver.used += member * scratch_bytes();
    Scratch mine(*this, carver);
    for (;;) {
      const int64_t ticket = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED), stage = ticket / tickets;
      if (stage >= shape.S * (shape.T + 1)) return;
      for (int spins = 0; __atomic_load_n(&done, __ATOMIC_ACQUIRE) < stage * tickets;) relax(spins);
      const int64_t t = stage % (shape.T + 1) - 1, place = ticket % tickets;
      const int64_t first = ((steps_before + t) & 1 ? tickets - 1 - place : place) * ticket_blocks;
      Step(*this, mine, stage / (shape.T + 1), t, first, least(first + ticket_blocks, blocks)).run();
      __atomic_fetch_add(&done, 1, __ATOMIC_RELEASE);
    }
  }

  struct Step;  // in prepared_step.h
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
