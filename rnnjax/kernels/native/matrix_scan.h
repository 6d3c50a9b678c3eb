// The matrix-state recurrence of `kernels/matrix_scan`: what both halves share, and the forward half.
//
// The value columns of S do not see one another. So vectors run over columns, and a task takes columns of one head through
// all of time, while their part of S stays in the first-level cache. What bounds it is arithmetic: for each entry of S and
// each step three operations, for S = decay S + key value' and y = S' query, and one more for S' erase.
#pragma once

#include "layout.h"
#include "pass.h"
#include "vector.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// `count` vectors of columns, of one key or of one step; the last of `width` columns may fill a part of its vector.
template <class E, int count>
struct Row {
  static constexpr int64_t L = Vector<E>::lanes;
  V<E> part[count];

  RNNJAX_INLINE static Row load(const E* from, int64_t width) {
    Row row;
    for (int p = 0; p < count; ++p) row.part[p] = load_part(from + p * L, int(least(L, width - p * L)));
    return row;
  }
  RNNJAX_INLINE static Row load(const E* from) {
    Row row;
    for (int p = 0; p < count; ++p) row.part[p] = RNNJAX_TARGET::load(from + p * L);
    return row;
  }
  RNNJAX_INLINE void store(E* to, int64_t width) const {
    for (int p = 0; p < count; ++p) store_part(to + p * L, part[p], int(least(L, width - p * L)));
  }
  RNNJAX_INLINE void store(E* to) const {
    for (int p = 0; p < count; ++p) RNNJAX_TARGET::store(to + p * L, part[p]);
  }
  // factor * other, added to it or taken from it
  RNNJAX_INLINE void add(V<E> factor, const Row& other) {
    for (int p = 0; p < count; ++p) part[p] += factor * other.part[p];
  }
  RNNJAX_INLINE void subtract(V<E> factor, const Row& other) {
    for (int p = 0; p < count; ++p) part[p] -= factor * other.part[p];
  }
  RNNJAX_INLINE void scale(V<E> factor) {
    for (int p = 0; p < count; ++p) part[p] *= factor;
  }
  // The products with the columns of `other`, added up but for the lanes.
  RNNJAX_INLINE V<E> times(const Row& other) const {
    V<E> sum = part[0] * other.part[0];
    for (int p = 1; p < count; ++p) sum += part[p] * other.part[p];
    return sum;
  }
};

// `visit(key, chain)` for all keys. Neighbouring ones are on different chains, since a sum has to wait for its last addition.
template <class Visit, int... chain>
RNNJAX_INLINE inline void each_chain(int64_t k, const Visit& visit, std::integer_sequence<int, chain...>) {
  (visit(k + chain, std::integral_constant<int, chain>{}), ...);
}
template <int chains, class Visit>
RNNJAX_INLINE inline void each_key(int64_t K, const Visit& visit) {
  int64_t k = 0;
  for (; k + chains <= K; k += chains) each_chain(k, visit, std::make_integer_sequence<int, chains>{});
  for (; k < K; ++k) visit(k, std::integral_constant<int, 0>{});
}
template <class E, int count, int chains>
inline Row<E, count> total(const Row<E, count> (&sums)[chains]) {
  Row<E, count> all = sums[0];
  for (int chain = 1; chain < chains; ++chain) all.add(splat(E(1)), sums[chain]);
  return all;
}

// Where a strip of columns lies: in one head of one sequence.
struct Strip {
  int64_t sequence, head, column, width;
};

// The strips that a task goes through in turn make a block of a head.
struct ColumnBlock {
  int64_t sequence, head, number, first, vectors;
};

// How work is divided: by sizes alone, so that a call gives the same bits on any number of threads.
template <class E>
struct ColumnBlocks {
  static constexpr int64_t L = Vector<E>::lanes;
  static constexpr int64_t FEW = 8;             // tasks: with fewer heads, heads are divided
  static constexpr int64_t CACHE = 32 << 10;    // bytes that a strip of a state may fill, of the first-level cache
  static constexpr int MOST = RNNJAX_BYTES < 64 ? 2 : 4;  // vectors of a strip, for which there are registers
  int64_t N, vectors, heads, each;
  int widest;

  // `limit`: into how many blocks a head may be divided.
  explicit ColumnBlocks(const MatrixScan& shape, int64_t limit = FEW)
      : N(shape.N), vectors(ceiling(shape.V, L)), heads(shape.B * shape.N) {
    each = least(vectors, least(limit, ceiling(FEW, most(1, heads))));
    widest = MOST;
    while (widest > 1 && (shape.K * widest * RNNJAX_BYTES > CACHE || widest > ceiling(vectors, each))) widest /= 2;
  }
  int64_t count() const { return heads * each; }
  ColumnBlock operator[](int64_t task) const {
    const int64_t number = task % each, place = task / each, first = vectors * number / each;
    return {place / N, place % N, number, first, vectors * (number + 1) / each - first};
  }

  // `visit(strip, integral_constant of vectors)` for the strips of a block.
  template <class Visit>
  void each_strip(const ColumnBlock& block, int64_t V, const Visit& visit) const {
    int64_t vector = block.first;
    const int64_t end = vector + block.vectors;
    const auto strips = [&](auto count) {
      for (; widest >= count && vector + count <= end; vector += count)
        visit(Strip{block.sequence, block.head, vector * L, least(count * L, V - vector * L)}, count);
    };
    if constexpr (MOST == 4) strips(std::integral_constant<int, 4>{});
    strips(std::integral_constant<int, 2>{});
    strips(std::integral_constant<int, 1>{});
  }
};

// The row of a head at a step, in an array [B T N size].
template <class E>
inline E* row_of(const void* base, const MatrixScan& shape, const Strip& at, int64_t t, int64_t size) {
  return static_cast<E*>(const_cast<void*>(base)) + ((at.sequence * shape.T + t) * shape.N + at.head) * size;
}
template <class E>
inline E* state_of(const void* base, const MatrixScan& shape, const Strip& at) {
  return static_cast<E*>(const_cast<void*>(base)) + (at.sequence * shape.N + at.head) * shape.K * shape.V + at.column;
}

// A strip of a state, in scratch as [K][count vectors]; of null, zeros.
template <class E, int count>
inline void load_state(const void* base, const MatrixScan& shape, const Strip& at, E* S) {
  if (!base) return clear(S, shape.K * count * Vector<E>::lanes);
  const E* from = state_of<E>(base, shape, at);
  for (int64_t k = 0; k < shape.K; ++k)
    Row<E, count>::load(from + k * shape.V, at.width).store(S + k * count * Vector<E>::lanes);
}
template <class E, int count>
inline void store_state(void* base, const MatrixScan& shape, const Strip& at, const E* S) {
  E* to = state_of<E>(base, shape, at);
  for (int64_t k = 0; k < shape.K; ++k)
    Row<E, count>::load(S + k * count * Vector<E>::lanes).store(to + k * shape.V, at.width);
}

// One step of a strip: its coefficients, and what it erases and writes. `own`: an erase has a key of its own.
template <class E, int count, bool own>
struct ScanStep {
  static constexpr int64_t L = Vector<E>::lanes;
  static constexpr int CHAINS = ColumnBlocks<E>::MOST / count, READ_CHAINS = 2 * CHAINS;
  using R = Row<E, count>;
  int64_t K, decay_stride;
  bool reads_before;
  const E *decay, *key, *query, *erase, *erase_key;
  R erased, written;  // S' erase; and what `key` is multiplied by, which is less by `erased` where that has the same key

  ScanStep(const MatrixScan& call, const Strip& at, int64_t t)
      : K(call.K), decay_stride(call.decays > 1), reads_before(call.reads_before),
        decay(row_of<E>(call.decay, call, at, t, call.decays)), key(row_of<E>(call.key, call, at, t, K)),
        query(row_of<E>(call.query, call, at, t, K)), erase(call.erase ? row_of<E>(call.erase, call, at, t, K) : nullptr),
        erase_key(own ? row_of<E>(call.erase_key, call, at, t, K) : nullptr),
        erased{}, written(R::load(row_of<E>(call.value, call, at, t, call.V) + at.column, at.width)) {}

  RNNJAX_INLINE static R at(const E* S, int64_t k) { return R::load(S + k * count * L); }

  void look(const E* before) {
    if (!erase) return;
    R sums[READ_CHAINS] = {};
    each_key<READ_CHAINS>(K, [&](int64_t k, auto chain) RNNJAX_INLINE { sums[chain].add(splat(erase[k]), at(before, k)); });
    look_at(total(sums));
  }
  void look_at(const R& found) {
    erased = found;
    if (!own) written.subtract(splat(E(1)), erased);
  }

  // From the state before the step to the one after it, which may take its place; `visit(k, chain, before, after)`.
  template <class Visit>
  RNNJAX_INLINE void advance(const E* before, E* after, const Visit& visit) const {
    each_key<CHAINS>(K, [&](int64_t k, auto chain) RNNJAX_INLINE {
      const R old = at(before, k);
      R now = old;
      now.scale(splat(decay[k * decay_stride]));
      now.add(splat(key[k]), written);
      if (own) now.subtract(splat(erase_key[k]), erased);
      now.store(after + k * count * L);
      visit(k, chain, old, now);
    });
  }
  // The same, and what the query reads.
  R advance_and_read(E* S) const {
    R sums[CHAINS] = {};
    if (reads_before) {
      advance(S, S, [&](int64_t k, auto chain, const R& old, const R&) RNNJAX_INLINE { sums[chain].add(splat(query[k]), old); });
    } else {
      advance(S, S, [&](int64_t k, auto chain, const R&, const R& now) RNNJAX_INLINE { sums[chain].add(splat(query[k]), now); });
    }
    return total(sums);
  }
};

inline bool is_reset(const MatrixScan& call, const Strip& at, int64_t t) {
  return call.resets && call.resets[at.sequence * call.T + t];
}

inline int64_t valid_steps(const MatrixScan& call, const Strip& at) {
  return call.length ? least(call.T, most(0, call.length[at.sequence])) : call.T;
}

// About how many nanoseconds a thread takes for some operations on each entry of the state, at each step.
template <class E>
inline int64_t scan_work(const MatrixScan& call, int64_t operations) {
  return call.B * call.T * call.N * call.K * ceiling(call.V, Vector<E>::lanes) * operations / 4;
}

template <class E>
class MatrixScanForwardPass {
 public:
  MatrixScanForwardPass(const MatrixScanForward& call, const Crew& crew)
      : call_(call), problem_(call.problem), crew_(crew), blocks_(call.problem) {}

  bool run() {
    const auto task = [](void* self, int64_t index) { static_cast<MatrixScanForwardPass*>(self)->task(index); };
    crew_.run(crew_.self, blocks_.count(), scan_work<E>(problem_, 3), task, this);
    return !out_of_memory_;
  }

 private:
  void task(int64_t index) {
    const ScopedMemory scoped(crew_, size_t(problem_.K) * blocks_.widest * RNNJAX_BYTES);
    if (!scoped.memory) return __atomic_store_n(&out_of_memory_, true, __ATOMIC_RELAXED);
    E* S = reinterpret_cast<E*>(scoped.memory);
    blocks_.each_strip(blocks_[index], problem_.V, [&](const Strip& at, auto count) {
      if (problem_.erase_key) {
        strip<count, true>(at, S);
      } else {
        strip<count, false>(at, S);
      }
    });
  }

  template <int count, bool own>
  void strip(const Strip& at, E* S) const {
    load_state<E, count>(problem_.state, problem_, at, S);
    const auto emit = [&](int64_t t, const Row<E, count>& y) {
      y.store(row_of<E>(call_.ys, problem_, at, t, problem_.V) + at.column, at.width);
    };
    const int64_t steps = valid_steps(problem_, at);
    for (int64_t t = 0; t < steps; ++t) {
      if (is_reset(problem_, at, t)) load_state<E, count>(problem_.start, problem_, at, S);
      ScanStep<E, count, own> step(problem_, at, t);
      step.look(S);
      emit(t, step.advance_and_read(S));
    }
    for (int64_t t = steps; t < problem_.T; ++t) emit(t, {});
    store_state<E, count>(call_.last, problem_, at, S);
  }

  const MatrixScanForward& call_;
  const MatrixScan& problem_;
  const Crew& crew_;
  const ColumnBlocks<E> blocks_;
  bool out_of_memory_ = false;
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
