// The diagonal linear recurrence of `kernels/linear_scan`, on all rows. What bounds it is memory: `a` and `b` are read once,
// `h` is written once, and what a thread reads next lies beside what it has read.
#pragma once

#include <utility>

#include "interface.h"
#include "vector.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// Numbers side by side in some lanes, of one part each, or of a real and an imaginary one.
template <class E, int lanes, int parts>
struct Numbers {
  typedef E Type __attribute__((vector_size(lanes * sizeof(E))));
  typedef typename Lane<E>::Integer Mask __attribute__((vector_size(lanes * sizeof(E))));
  typedef E Unaligned __attribute__((vector_size(lanes * sizeof(E)), aligned(sizeof(E)), may_alias));

  static Type load(const E* from) { return *reinterpret_cast<const Unaligned*>(from); }
  static void store(E* to, Type value) { *reinterpret_cast<Unaligned*>(to) = value; }
  // Past the caches, where `to` is aligned: a line that is written as a whole need not be read first.
  static void stream(E* to, Type value) {
#if defined(__clang__)
    __builtin_nontemporal_store(value, reinterpret_cast<Type*>(to));
#elif defined(__AVX512F__)
    __builtin_ia32_movntps512(reinterpret_cast<float*>(to), reinterpret_cast<V<float>>(value));
#elif defined(__AVX2__)
    __builtin_ia32_movntps256(reinterpret_cast<float*>(to), reinterpret_cast<V<float>>(value));
#elif defined(__SSE2__)
    __builtin_ia32_movntps(reinterpret_cast<float*>(to), reinterpret_cast<V<float>>(value));
#else
    store(to, value);
#endif
  }

  // Where `a` is exactly zero, in all of its parts.
  static Mask vanishes(Type a) {
    const Mask zero = a == Type{};
    if constexpr (parts == 1) return zero;
    return zero & permuted<TURNED>(zero, All{});
  }
  // a h + b
  static Type advanced(Type a, Type h, Type b) {
    if constexpr (parts == 1) return a * h + b;
    const Type signs = signed_ones(All{});
    return permuted<REAL>(a, All{}) * h + (permuted<IMAGINARY>(a, All{}) * signs * permuted<TURNED>(h, All{}) + b);
  }
  // a h, and nothing where `a` forgets
  static Type moved(Type a, Type h) { return vanishes(a) ? Type{} : advanced(a, h, Type{}); }

 private:
  using All = std::make_integer_sequence<int, lanes>;
  enum Order { REAL, IMAGINARY, TURNED };

  static constexpr int source(Order order, int lane) {
    return order == REAL ? lane & ~1 : order == IMAGINARY ? lane | 1 : lane ^ 1;
  }
  template <Order order, class Lanes, int... lane>
  static Lanes permuted(Lanes x, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(x, x, source(order, lane)...);
#else
    return __builtin_shuffle(x, Mask{source(order, lane)...});
#endif
  }
  template <int... lane>
  static Type signed_ones(std::integer_sequence<int, lane...>) {
    return Type{E(lane % 2 ? 1 : -1)...};
  }
};

// What was streamed is there for others after this.
inline void end_of_stream() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
}

// Units of one row, in steps next to each other, in running order: where the first of them lies, and how far it is to the
// next step, in elements.
template <class E>
struct Stretch {
  const E* a;
  const E* b;
  E* h;
  int64_t steps, stride;

  Stretch after(int64_t skipped, int64_t most) const {
    const int64_t ahead = skipped * stride, left = steps - skipped;
    return {a + ahead, b + ahead, h + ahead, left < most ? left : most, stride};
  }
};

// Tasks are rows, or what there is more of: pieces of their units, where they have very many, and, where there are fewer rows
// than threads, chunks of their time. Rows are not cut for the threads' sake: lines that each reads only every other of come
// at half the pace.
template <class E, int parts, bool late>
class LinearScanPass {
 public:
  LinearScanPass(const LinearScan& call, const Crew& crew)
      : call_(call), crew_(crew), width_(call.H * parts), bytes_(call.B * call.T * width_ * int64_t(sizeof(E))) {
    pieces_ = (width_ + MOST - 1) / MOST;
    const int64_t idle = crew.threads / (call.B * pieces_), worth = 3 * bytes_ / (call.B * pieces_ * CHUNK);
    chunks_ = idle < worth ? idle : worth;
    if (chunks_ < 1) chunks_ = 1;
    if (chunks_ > call.T) chunks_ = call.T;
  }

  void run() {
    const int64_t work = 3 * bytes_ / RATE;
    const auto replay = [](void* self, int64_t task) { static_cast<LinearScanPass*>(self)->replay(task); };
    crew_.run(crew_.self, call_.B * pieces_ * chunks_, work, replay, this);
    if (chunks_ == 1) return;
    const auto correct = [](void* self, int64_t task) { static_cast<LinearScanPass*>(self)->correct(task); };
    crew_.run(crew_.self, call_.B * pieces_, work, correct, this);
  }

 private:
  static constexpr int64_t MOST = 2048;          // elements of a piece, whose carry is on the stack
  static constexpr int64_t CHUNK = 1 << 21;      // bytes that a thread is given at least where time is cut
  static constexpr int64_t BLOCK = 512;          // bytes of one operand that several strips go through in turn
  static constexpr int64_t LARGE = 12 << 20;     // bytes of `h` that no cache is expected to hold
  static constexpr int64_t RATE = 32;            // bytes in a nanosecond
  static constexpr int64_t CHECKED = 16;         // steps between two looks at whether something is left
  static constexpr E SMALLEST = sizeof(E) == 4 ? E(1.17549435082228751e-38) : E(2.22507385850720138e-308);
  enum Way { REPLAY, STREAM, CORRECT };

  struct Task {
    int64_t chunk, row, unit, width;
  };
  Task task_of(int64_t chunk, int64_t number) const {
    const int64_t row = number / pieces_, unit = number % pieces_ * MOST, left = width_ - unit;
    return {chunk, row, unit, left < MOST ? left : MOST};
  }

  int64_t begin(int64_t chunk) const { return call_.T * chunk / chunks_; }

  // The steps of a task's chunk, and of its units.
  Stretch<E> stretch(const Task& task) const {
    const int64_t first = begin(task.chunk), time = call_.reverse ? call_.T - 1 - first : first;
    const int64_t a_row = call_.shared ? 0 : task.row, place = time * width_ + task.unit, whole = call_.T * width_;
    return {static_cast<const E*>(call_.a) + a_row * whole + place,
            static_cast<const E*>(call_.b) + task.row * whole + place,
            static_cast<E*>(call_.h) + task.row * whole + place, begin(task.chunk + 1) - first,
            call_.reverse ? -width_ : width_};
  }

  // All states of a chunk: of the first from the initial state, of the others as if none came before.
  void replay(int64_t number) {
    const Task task = task_of(number % chunks_, number / chunks_);
    const Stretch<E> whole = stretch(task);
    E carry[MOST];
    if (task.chunk) {
      memset(carry, 0, task.width * sizeof(E));
    } else {
      memcpy(carry, static_cast<const E*>(call_.initial) + task.row * width_ + task.unit, task.width * sizeof(E));
    }
    const bool whole_lines = width_ % Vector<E>::lanes == 0 && uintptr_t(call_.h) % RNNJAX_BYTES == 0;
    if (bytes_ > LARGE && whole_lines) {
      walk<STREAM>(whole, task.width, carry);
      end_of_stream();
    } else {
      walk<REPLAY>(whole, task.width, carry);
    }
  }

  // What the chunks after the first lack: what the one before hands on, for as long as something is left of it.
  void correct(int64_t number) {
    using One = Numbers<E, parts, parts>;
    E carry[MOST];
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      const Task task = task_of(chunk, number);
      const Stretch<E> whole = stretch(task);
      for (int64_t k = 0; k < task.width; k += parts) {
        const typename One::Type h = One::load(whole.h - whole.stride + k);
        One::store(carry + k, late ? One::moved(One::load(whole.a - whole.stride + k), h) : h);
      }
      walk<CORRECT>(whole, task.width, carry);
    }
  }

  // Few steps at a time, so that all is read in the order in which it lies there.
  template <Way way>
  static void walk(const Stretch<E>& whole, int64_t width, E* carry) {
    const int64_t few = BLOCK / int64_t(width * sizeof(E)), least = way == CORRECT ? CHECKED : 1;
    const int64_t most = few < least ? least : few;
    for (int64_t first = 0; first < whole.steps; first += most) {
      if (way == CORRECT && faded(carry, width)) return;
      const Stretch<E> block = whole.after(first, most);
      int64_t unit = strips<way, Vector<E>::lanes, 8>(block, 0, width, carry);
      unit = strips<way, Vector<E>::lanes, 4>(block, unit, width, carry);
      unit = strips<way, Vector<E>::lanes, 2>(block, unit, width, carry);
      narrower<way, Vector<E>::lanes>(block, unit, width, carry);
    }
  }
  // Whether all is so small that a processor may take it for zero. What is not a number is not.
  static bool faded(const E* carry, int64_t width) {
    bool all = true;
    for (int64_t k = 0; k < width; ++k) all &= carry[k] < SMALLEST && carry[k] > -SMALLEST;
    return all;
  }
  template <Way way, int lanes>
  static void narrower(const Stretch<E>& block, int64_t unit, int64_t width, E* carry) {
    unit = strips<way, lanes, 1>(block, unit, width, carry);
    if constexpr (lanes > parts) narrower<way, lanes / 2>(block, unit, width, carry);
  }
  template <Way way, int lanes, int count>
  static int64_t strips(const Stretch<E>& block, int64_t unit, int64_t width, E* carry) {
    for (; unit + lanes * count <= width; unit += lanes * count) {
      const Stretch<E> strip = {block.a + unit, block.b + unit, block.h + unit, block.steps, block.stride};
      if constexpr (way == CORRECT) {
        correct<lanes, count>(strip, carry + unit);
      } else {
        replay<lanes, count, way == STREAM && lanes == Vector<E>::lanes>(strip, carry + unit);
      }
    }
    return unit;
  }

  template <int lanes, int count, bool streams>
  static void replay(Stretch<E> at, E* carry) {
    using N = Numbers<E, lanes, parts>;
    typename N::Type c[count];
    for (int k = 0; k < count; ++k) c[k] = N::load(carry + k * lanes);
    for (int64_t step = 0; step < at.steps; ++step, at.a += at.stride, at.b += at.stride, at.h += at.stride)
      for (int k = 0; k < count; ++k) {
        const typename N::Type a = N::load(at.a + k * lanes), b = N::load(at.b + k * lanes);
        const typename N::Type h = late ? c[k] + b : N::vanishes(a) ? b : N::advanced(a, c[k], b);
        c[k] = late ? N::moved(a, h) : h;
        if constexpr (streams) {
          N::stream(at.h + k * lanes, h);
        } else {
          N::store(at.h + k * lanes, h);
        }
      }
    for (int k = 0; k < count; ++k) N::store(carry + k * lanes, c[k]);
  }

  template <int lanes, int count>
  static void correct(Stretch<E> at, E* carry) {
    using N = Numbers<E, lanes, parts>;
    typename N::Type c[count];
    for (int k = 0; k < count; ++k) c[k] = N::load(carry + k * lanes);
    for (int64_t step = 0; step < at.steps; ++step, at.a += at.stride, at.b += at.stride, at.h += at.stride) {
      for (int k = 0; k < count; ++k) {
        const typename N::Type a = N::load(at.a + k * lanes), moved = N::moved(a, c[k]);
        N::store(at.h + k * lanes, N::load(at.h + k * lanes) + (late ? c[k] : moved));
        c[k] = moved;
      }
    }
    for (int k = 0; k < count; ++k) N::store(carry + k * lanes, c[k]);
  }

  const LinearScan& call_;
  const Crew& crew_;
  const int64_t width_, bytes_;  // of a row, in elements; of `h`
  int64_t pieces_, chunks_;
};

template <class E, int parts>
void linear_scan(const LinearScan& call, const Crew& crew) {
  if (call.late) {
    LinearScanPass<E, parts, true>(call, crew).run();
  } else {
    LinearScanPass<E, parts, false>(call, crew).run();
  }
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
