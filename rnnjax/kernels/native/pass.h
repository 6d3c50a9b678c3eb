// What the forward and the backward half have in common: how a problem is shared out, and how a tile goes through time.
#pragma once

#include <new>

#include "pack.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// One call: the tiles, the cores that share them, and the packed vectors that both halves read.
template <class Stored>
struct Pass {
  using E = Computed<Stored>;
  using A = Factor<Stored>;
  static constexpr int L = Vector<E>::lanes;
  const Problem& problem;
  const Crew& crew;
  const Shape& shape;
  Tiles tiles;
  Layout<E> layout;
  int64_t members;                      // cores that may share a tile
  int64_t vector_groups, panel_groups;  // of packed vectors and panels: 1 where all groups share their weights
  Gang* gangs = nullptr;                // of each shared tile
  E *unit_parameters = nullptr, *initial = nullptr;
  bool out_of_memory = false;

  Pass(const Problem& problem, const Crew& crew)
      : problem(problem), crew(crew), shape(problem.shape), tiles(shape, crew.threads),
        layout(problem, tiles.rows(shape, 0)), members(sharers(layout, tiles, crew.threads)) {
    panel_groups = problem.W.stride || problem.R.stride ? shape.S : 1;
    vector_groups = panel_groups > 1 || problem.b.stride || problem.unit_parameters.stride || problem.initial.stride
                        ? shape.S : 1;
  }

  void carve(Carver& carver, int64_t shared_tiles) {
    gangs = carver.carve<Gang>(members > 1 ? shared_tiles : 0);
    unit_parameters = carver.carve<E>(vector_groups * layout.blocks * shape.K * L);
    initial = carver.carve<E>(vector_groups * layout.blocks * shape.F * L);
  }

  void pack_vectors(int64_t group) {
    pack_units(layout, group_of<E>(problem.unit_parameters, group), shape.K,
               unit_parameters + group * layout.blocks * shape.K * L);
    pack_units(layout, group_of<E>(problem.initial, group), shape.F, initial + group * layout.blocks * shape.F * L);
  }

  void open_gangs(int64_t shared_tiles) {
    for (int64_t tile = 0; members > 1 && tile < shared_tiles; ++tile) new (gangs + tile) Gang;
  }
  // Nobody waits for a tile whose owner has no memory.
  void give_up(int64_t tile) {
    __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
    if (members > 1) gangs[tile].close({}, 0);
  }

  int64_t state_size(int64_t rows) const { return shape.F * layout.blocks * rows * L; }
};

// Scratch memory of the crew, given back at the end of the scope; `memory` is null if there was none left.
class ScopedMemory {
 public:
  ScopedMemory(const Crew& crew, size_t bytes) : memory(static_cast<char*>(crew.take(crew.self, bytes))), crew_(crew) {}
  ~ScopedMemory() {
    if (memory) crew_.give(crew_.self, memory);
  }
  ScopedMemory(const ScopedMemory&) = delete;
  ScopedMemory& operator=(const ScopedMemory&) = delete;

  char* const memory;

 private:
  const Crew& crew_;
};

// What one member does of the scan of a tile along time.
template <class Stored>
struct TileScan {
  using E = Computed<Stored>;
  static constexpr int L = Vector<E>::lanes;
  const Pass<Stored>& pass;
  const Rows& rows;
  int64_t group;  // of the packed vectors
  Gang* gang;     // null where the tile is not shared
  const Shape& shape = pass.shape;
  const Layout<E>& layout = pass.layout;
  Member member = {};
  int64_t begin = 0, end = layout.blocks;  // the blocks of this member
  int64_t key = 0;                         // of the section

  TileScan(const Pass<Stored>& pass, const Rows& rows, int64_t group, Gang* gang)
      : pass(pass), rows(rows), group(group * (pass.vector_groups > 1)), gang(gang) {}

  // Goes through all steps in sections, as the owner: section(done) goes on from there and returns how many are done then.
  template <class Section>
  void lead_through(Section section) {
    for (int64_t done = 0; done < rows.longest;) {
      key = done + 1;
      if (gang) member = gang->open(key);
      done = section(done);
    }
    if (gang) gang->close(member, key);
  }
  // Goes with the owner from the section on in which it is let in.
  template <class Section>
  void follow_through(Section section) {
    const int64_t number = gang->join();
    while (number && gang->enter(number, &key, &member)) {
      section(key - 1);
      gang->done(member, key);
    }
  }
  void meet(int64_t phase) {
    if (gang) gang->meet(member, key, phase);
  }

  bool is_reset(int64_t row, int64_t t) const {
    const uint8_t* resets = pass.problem.resets;
    return resets && resets[rows.sequence[row] * shape.T + t];
  }

  // Rows of a state, [field][block][row][lane]; of a batch of blocks, [number][block][row][lane]; packed vectors.
  E* state_of(E* state, int64_t field, int64_t block) const {
    return state + (field * layout.blocks + block) * rows.count * L;
  }
  E* batch_of(E* batch, int64_t number, int64_t blocks, int64_t block_in_batch) const {
    return batch + (number * blocks + block_in_batch) * rows.count * L;
  }
  V<E> initial_of(int64_t field, int64_t block) const {
    return load(pass.initial + ((group * shape.F + field) * layout.blocks + block) * L);
  }

  // The unit parameters of a batch of blocks, a row for each sequence, as inputs of a program.
  void broadcast_unit_parameters(E* batch, int64_t block, int64_t blocks, E** inputs) const {
    for (int64_t k = 0; k < shape.K; ++k) {
      inputs[k] = batch_of(batch, k, blocks, 0);
      for (int64_t u = 0; u < blocks; ++u)
        fill(batch_of(batch, k, blocks, u),
             load(pass.unit_parameters + ((group * shape.K + k) * layout.blocks + block + u) * L), rows.count);
    }
  }
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
