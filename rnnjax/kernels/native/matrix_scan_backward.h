// The backward half of the matrix-state recurrence.
//
// Nothing is stored by the forward half. A first sweep leaves the state at the border of every chunk of time; then chunk by
// chunk, the last one first, all states of the chunk are computed again, and its steps are taken back. Chunks are so short
// that their states stay in the second-level cache, unless borders would be many more than the states of a chunk.
//
// The gradients of decay, key, query, erase and erase_key are sums over columns: first over the strips of a block, in
// order, and then over the blocks of a head.
#pragma once

#include "matrix_scan.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// The gradients that are sums over columns, each [B T N K], of one block of every head; null where not needed.
struct KeyGradients {
  void *decay, *key, *query, *erase, *erase_key;
};

template <class E>
class MatrixScanBackwardPass {
 public:
  MatrixScanBackwardPass(const MatrixScanBackward& call, const Crew& crew)
      : call_(call), problem_(call.problem), crew_(crew), blocks_(call.problem, most_blocks(call.problem)) {
    state_ = problem_.K * blocks_.widest * L;
    chunk_ = most(1, CACHE / (state_ * int64_t(sizeof(E))));
    while (problem_.T / chunk_ > MOST_BORDERS * chunk_) chunk_ *= 2;
    chunk_ = most(1, least(chunk_, problem_.T));
    chunks_ = ceiling(problem_.T, chunk_);
  }

  bool run() {
    Carver sizes{nullptr};
    carve(sizes);
    const ScopedMemory scoped(crew_, sizes.used);
    if (!scoped.memory) return false;
    Carver carver{scoped.memory};
    carve(carver);
    const auto task = [](void* self, int64_t index) { static_cast<MatrixScanBackwardPass*>(self)->task(index); };
    crew_.run(crew_.self, blocks_.count(), scan_work<E>(problem_, 12), task, this);
    if (out_of_memory_) return false;
    if (blocks_.each == 1) return true;
    const auto add = [](void* self, int64_t index) { static_cast<MatrixScanBackwardPass*>(self)->add_blocks(index); };
    crew_.run(crew_.self, PIECES, key_rows() * problem_.K * blocks_.each, add, this);
    return true;
  }

 private:
  static constexpr int64_t L = Vector<E>::lanes;
  static constexpr int64_t CACHE = 256 << 10;   // bytes of the second-level cache, for the states of a chunk
  static constexpr int64_t MOST_BORDERS = 16;   // times the states of a chunk
  static constexpr int64_t PIECES = 16;         // of each gradient, to be added up
  static constexpr int64_t MANY = 4 << 20;      // numbers that more than two blocks of a head may take

  // What one task works in.
  struct Scratch {
    E *start, *borders, *states, *erased, *G, *dstart;
    E *decay, *key, *query, *erase, *erase_key;  // for each key a vector, whose lanes are still to be added up

    Scratch(const MatrixScanBackwardPass& pass, Carver& carver) {
      const int64_t keys = ceiling(pass.problem_.K, L) * L * L;
      start = carver.carve<E>(pass.state_);
      borders = carver.carve<E>(pass.state_ * most(1, pass.chunks_));
      states = carver.carve<E>(pass.state_ * pass.chunk_);
      erased = carver.carve<E>(blocks_width(pass) * pass.chunk_);
      G = carver.carve<E>(pass.state_);
      dstart = carver.carve<E>(pass.state_);
      for (E** sums : {&decay, &key, &query, &erase, &erase_key}) {
        *sums = carver.carve<E>(keys);
        if (carver.memory) clear(*sums, keys);  // those beyond the last key, which nothing is added to
      }
    }
    static int64_t blocks_width(const MatrixScanBackwardPass& pass) { return pass.blocks_.widest * L; }
  };

  // Every block but the first takes as much memory as the gradients that are sums over columns: two, or more if that is
  // little.
  static int64_t most_blocks(const MatrixScan& shape) {
    const int64_t numbers = shape.B * shape.T * shape.N * (4 * shape.K + shape.decays);
    return most(2, 1 + MANY / most(1, numbers));
  }

  int64_t key_rows() const { return problem_.B * problem_.T * problem_.N; }

  KeyGradients results() const { return {call_.ddecay, call_.dkey, call_.dquery, call_.derase, call_.derase_key}; }

  // The gradients of all blocks of a head but the first, whose are the results themselves.
  void carve(Carver& carver) {
    const auto more = [&](void* result, int64_t size) -> void* {
      return result ? carver.carve<E>((blocks_.each - 1) * key_rows() * size) : nullptr;
    };
    const int64_t K = problem_.K;
    others_ = {more(call_.ddecay, problem_.decays), more(call_.dkey, K), more(call_.dquery, K), more(call_.derase, K),
               more(call_.derase_key, K)};
  }
  KeyGradients gradients_of(int64_t block) const {
    if (block == 0) return results();
    const auto place = [&](void* first, int64_t size) -> void* {
      return first ? static_cast<E*>(first) + (block - 1) * key_rows() * size : nullptr;
    };
    const int64_t K = problem_.K;
    return {place(others_.decay, problem_.decays), place(others_.key, K), place(others_.query, K),
            place(others_.erase, K), place(others_.erase_key, K)};
  }

  void add_blocks(int64_t piece) const {
    const auto add = [&](void* result, void* others, int64_t size) {
      if (!result) return;
      const int64_t all = key_rows() * size;
      E* to = static_cast<E*>(result);
      for (int64_t block = 1; block < blocks_.each; ++block) {
        const E* from = static_cast<const E*>(others) + (block - 1) * all;
        for (int64_t k = all * piece / PIECES; k < all * (piece + 1) / PIECES; ++k) to[k] += from[k];
      }
    };
    add(call_.ddecay, others_.decay, problem_.decays);
    add(call_.dkey, others_.key, problem_.K);
    add(call_.dquery, others_.query, problem_.K);
    add(call_.derase, others_.erase, problem_.K);
    add(call_.derase_key, others_.erase_key, problem_.K);
  }

  void task(int64_t index) {
    Carver sizes{nullptr};
    Scratch(*this, sizes);
    const ScopedMemory scoped(crew_, sizes.used);
    if (!scoped.memory) return __atomic_store_n(&out_of_memory_, true, __ATOMIC_RELAXED);
    Carver carver{scoped.memory};
    const Scratch scratch(*this, carver);
    const ColumnBlock block = blocks_[index];
    const KeyGradients gradients = gradients_of(block.number);
    blocks_.each_strip(block, problem_.V, [&](const Strip& at, auto count) {
      const bool adds = at.column != block.first * L;
      if (problem_.erase_key) {
        StripBackward<count, true>{*this, at, scratch, gradients, adds}.run();
      } else {
        StripBackward<count, false>{*this, at, scratch, gradients, adds}.run();
      }
    });
  }

  template <int count, bool own>
  struct StripBackward;

  const MatrixScanBackward& call_;
  const MatrixScan& problem_;
  const Crew& crew_;
  const ColumnBlocks<E> blocks_;
  int64_t state_, chunk_, chunks_;  // numbers of a strip of a state; steps of a chunk; chunks
  KeyGradients others_ = {};
  bool out_of_memory_ = false;
};

// One strip, through all of time and back; `adds`: to the sums over columns of the strips before it.
template <class E>
template <int count, bool own>
struct MatrixScanBackwardPass<E>::StripBackward {
  using R = Row<E, count>;
  using Step = ScanStep<E, count, own>;
  static constexpr int64_t WIDTH = count * L;
  const MatrixScanBackwardPass& pass;
  const Strip& at;
  const Scratch& scratch;
  const KeyGradients& gradients;
  const bool adds;
  const MatrixScanBackward& call = pass.call_;
  const MatrixScan& problem = call.problem;
  const int64_t K = problem.K, size = K * WIDTH, T = valid_steps(problem, at), chunks = ceiling(T, pass.chunk_);

  void run() const {
    load_state<E, count>(problem.start, problem, at, scratch.start);
    load_state<E, count>(problem.state, problem, at, scratch.borders);
    for (int64_t chunk = 0; chunk + 1 < chunks; ++chunk) {
      E* border = scratch.borders + chunk * size;
      for (int64_t i = 0; i < pass.chunk_; ++i) replay(chunk * pass.chunk_ + i, i ? border + size : border, border + size);
    }
    load_state<E, count>(call.dlast, problem, at, scratch.G);
    clear(scratch.dstart, size);
    for (int64_t t = T; t < problem.T; ++t) ignore(t);
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) take_back(chunk);
    if (call.dstate) store_state<E, count>(call.dstate, problem, at, scratch.G);
    if (call.dstart) store_state<E, count>(call.dstart, problem, at, scratch.dstart);
  }

  const E* before(int64_t t, const E* state) const { return is_reset(problem, at, t) ? scratch.start : state; }
  R row(const void* rows, int64_t t) const {
    return R::load(row_of<E>(rows, problem, at, t, problem.V) + at.column, at.width);
  }

  // Zeros as the gradients of an ignored step.
  void ignore(int64_t t) const {
    if (call.dvalue) R{}.store(row_of<E>(call.dvalue, problem, at, t, problem.V) + at.column, at.width);
    if (adds) return;
    const auto fill = [&](void* gradient, int64_t keys) {
      if (gradient) clear(row_of<E>(gradient, problem, at, t, keys), keys);
    };
    fill(gradients.decay, problem.decays);
    for (void* gradient : {gradients.key, gradients.query, gradients.erase, gradients.erase_key}) fill(gradient, K);
  }

  void replay(int64_t t, const E* from, E* to) const {
    Step step(problem, at, t);
    const E* state = before(t, from);
    step.look(state);
    step.advance(state, to, [](int64_t, auto, const R&, const R&) {});
  }

  void take_back(int64_t chunk) const {
    const int64_t first = chunk * pass.chunk_, steps = least(pass.chunk_, T - first);
    const E* border = scratch.borders + chunk * size;
    for (int64_t i = 0; i < steps; ++i)
      read(first + i, i ? scratch.states + (i - 1) * size : border, scratch.states + i * size, scratch.erased + i * WIDTH);
    for (int64_t i = steps - 1; i >= 0; --i)
      pull(first + i, i ? scratch.states + (i - 1) * size : border, scratch.erased + i * WIDTH);
  }

  // The step again, and the gradient of its query.
  void read(int64_t t, const E* from, E* to, E* erased) const {
    Step step(problem, at, t);
    const E* state = before(t, from);
    step.look(state);
    step.erased.store(erased);
    const R dy = row(call.dys, t);
    if (problem.reads_before) {
      step.advance(state, to, [&](int64_t k, auto, const R& old, const R&) RNNJAX_INLINE { store(scratch.query + k * L, old.times(dy)); });
    } else {
      step.advance(state, to, [&](int64_t k, auto, const R&, const R& now) RNNJAX_INLINE { store(scratch.query + k * L, now.times(dy)); });
    }
    add_lanes(scratch.query, gradients.query, t);
  }

  // From the cotangent G of the state after a step to that of the state before it.
  void pull(int64_t t, const E* from, const E* erased) const {
    Step step(problem, at, t);
    step.look_at(R::load(erased));
    const E* state = before(t, from);
    if (problem.reads_before) {
      pull_step<true>(step, t, state);
    } else {
      pull_step<false>(step, t, state);
    }
    add_lanes(scratch.key, gradients.key, t);
    if (own) add_lanes(scratch.erase_key, gradients.erase_key, t);
    if (is_reset(problem, at, t)) {
      for (int64_t k = 0; k < size; ++k) scratch.dstart[k] += scratch.G[k];
      clear(scratch.G, size);
    }
  }

  template <bool reads_before>
  void pull_step(const Step& step, int64_t t, const E* state) const {
    constexpr int CHAINS = Step::CHAINS;
    const R dy = row(call.dys, t);
    R dwritten[CHAINS] = {}, derased[CHAINS] = {};
    V<E> ddecay[CHAINS] = {};
    each_key<CHAINS>(K, [&](int64_t k, auto chain) RNNJAX_INLINE {
      R g = Step::at(scratch.G, k);
      const R old = Step::at(state, k);
      if (!reads_before) g.add(splat(step.query[k]), dy);
      dwritten[chain].add(splat(step.key[k]), g);
      if (own) derased[chain].subtract(splat(step.erase_key[k]), g);
      store(scratch.key + k * L, g.times(step.written));
      if (own) store(scratch.erase_key + k * L, -g.times(step.erased));
      const V<E> by_decay = g.times(old);
      if (step.decay_stride) {
        store(scratch.decay + k * L, by_decay);
      } else {
        ddecay[chain] += by_decay;
      }
      if (!step.erase) {
        g.scale(splat(step.decay[k * step.decay_stride]));
        if (reads_before) g.add(splat(step.query[k]), dy);
      }
      g.store(scratch.G + k * WIDTH);
    });
    const R dvalue = total(dwritten);
    if (call.dvalue) dvalue.store(row_of<E>(call.dvalue, problem, at, t, problem.V) + at.column, at.width);
    if (!step.decay_stride) {
      for (int chain = 1; chain < CHAINS; ++chain) ddecay[0] += ddecay[chain];
      store(scratch.decay, ddecay[0]);
    }
    add_lanes(scratch.decay, gradients.decay, t, problem.decays);
    if (!step.erase) return;
    R dfound = own ? total(derased) : R{};
    if (!own) dfound.subtract(splat(E(1)), dvalue);
    each_key<1>(K, [&](int64_t k, auto) RNNJAX_INLINE {
      R g = Step::at(scratch.G, k);
      store(scratch.erase + k * L, dfound.times(Step::at(state, k)));
      g.scale(splat(step.decay[k * step.decay_stride]));
      g.add(splat(step.erase[k]), dfound);
      if (reads_before) g.add(splat(step.query[k]), dy);
      g.store(scratch.G + k * WIDTH);
    });
    add_lanes(scratch.erase, gradients.erase, t);
  }

  // The lanes of each key's vector, added up, in the row of a gradient.
  void add_lanes(const E* sums, void* gradient, int64_t t) const { add_lanes(sums, gradient, t, K); }
  void add_lanes(const E* sums, void* gradient, int64_t t, int64_t keys) const {
    if (!gradient) return;
    E* to = row_of<E>(gradient, problem, at, t, keys);
    for (int64_t k = 0; k < keys; k += L) {
      const int many = int(least(L, keys - k));
      const V<E> sum = lane_sums(sums + k * L);
      store_part(to + k, adds ? load_part(to + k, many) + sum : sum, many);
    }
  }
};

template <class E>
bool matrix_scan_forward(const MatrixScanForward& call, const Crew& crew) {
  return MatrixScanForwardPass<E>(call, crew).run();
}
template <class E>
bool matrix_scan_backward(const MatrixScanBackward& call, const Crew& crew) {
  return MatrixScanBackwardPass<E>(call, crew).run();
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
