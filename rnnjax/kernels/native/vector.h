// Vectors of one instruction set, and the elementary functions on them. Included once for each instruction set, each
// time in a namespace of its own: nothing here may be shared between them, lest the linker keep the wrong copy.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

namespace rnnjax {
namespace RNNJAX_TARGET {

// Where a call would keep sums in memory: a compiler does not inline large bodies by itself.
#define RNNJAX_INLINE __attribute__((always_inline))

template <class E>
struct Lane;
template <>
struct Lane<float> {
  using Integer = int32_t;
  using Bits = uint32_t;
};
template <>
struct Lane<double> {
  using Integer = int64_t;
  using Bits = uint64_t;
};
template <>
struct Lane<uint32_t> {
  using Integer = int32_t;
  using Bits = uint32_t;
};

template <class E>
struct Vector {
  static constexpr int lanes = RNNJAX_BYTES / sizeof(E);
  typedef E Type __attribute__((vector_size(RNNJAX_BYTES)));
  typedef typename Lane<E>::Integer Mask __attribute__((vector_size(RNNJAX_BYTES)));
  typedef typename Lane<E>::Bits Bits __attribute__((vector_size(RNNJAX_BYTES)));
  typedef E Unaligned __attribute__((vector_size(RNNJAX_BYTES), aligned(sizeof(E)), may_alias));
};
template <class E>
using V = typename Vector<E>::Type;
template <class E>
using M = typename Vector<E>::Mask;

template <class E>
inline V<E> load(const E* from) {
  return *reinterpret_cast<const typename Vector<E>::Unaligned*>(from);
}
template <class E>
inline void store(E* to, V<E> value) {
  *reinterpret_cast<typename Vector<E>::Unaligned*>(to) = value;
}
template <class E>
inline V<E> splat(E value) {
  return value - V<E>{};
}
template <class E>
inline V<E> choose(M<E> where, V<E> chosen, V<E> other) {
  return where ? chosen : other;
}

// `count` <= lanes values, the rest zero. Of dtypes that are computed in; there is one below for those that are not.
template <class E, class = typename Lane<E>::Bits>
inline V<E> load_part(const E* from, int count) {
  if (count == Vector<E>::lanes) return load(from);
  V<E> value = {};
  memcpy(&value, from, count * sizeof(E));
  return value;
}
template <class E, class = typename Lane<E>::Bits>
inline void store_part(E* to, V<E> value, int count) {
  if (count == Vector<E>::lanes) {
    store(to, value);
  } else {
    memcpy(to, &value, count * sizeof(E));
  }
}

// Two vectors of groups of lanes to one of twice as many groups, half as wide: each is the sum of the halves of its group;
// groups of the two take turns.
template <class E, int group>
constexpr int half_of(int lane) {
  return lane / (group / 2) % 2 * Vector<E>::lanes + lane / group * group + lane % (group / 2);
}
template <class E, int group, int... lane>
inline V<E> halved(V<E> one, V<E> other, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(one, other, half_of<E, group>(lane)...) +
         __builtin_shufflevector(one, other, (half_of<E, group>(lane) + group / 2)...);
#else
  return __builtin_shuffle(one, other, M<E>{half_of<E, group>(lane)...}) +
         __builtin_shuffle(one, other, M<E>{(half_of<E, group>(lane) + group / 2)...});
#endif
}
template <class E, int group>
inline V<E> sums_of(V<E>* rows) {
  if constexpr (group > 1) {
    for (int row = 0; row < group / 2; ++row)
      rows[row] = halved<E, group>(rows[row], rows[row + group / 2], std::make_integer_sequence<int, Vector<E>::lanes>{});
    return sums_of<E, group / 2>(rows);
  }
  return rows[0];
}
// Of as many vectors as there are lanes, one after the other in memory: the sum of the lanes of each.
template <class E>
inline V<E> lane_sums(const E* from) {
  V<E> rows[Vector<E>::lanes];
  for (int row = 0; row < Vector<E>::lanes; ++row) rows[row] = load(from + row * Vector<E>::lanes);
  return sums_of<E, Vector<E>::lanes>(rows);
}

// How numbers may be stored: the upper half of a float, in which they are computed.
struct Bfloat16 {
  uint16_t bits;
};
template <class Stored>
using Computed = std::conditional_t<std::is_same_v<Stored, Bfloat16>, float, Stored>;
typedef uint16_t Halves __attribute__((vector_size(RNNJAX_BYTES / 2)));

// The nearest bfloat16, ties to the even one, as a float.
inline V<float> rounded(V<float> value) {
  using Bits = Vector<float>::Bits;
  const Bits bits = reinterpret_cast<Bits>(value), nearest = bits + 0x7fff + (bits >> 16 & 1);
  return reinterpret_cast<V<float>>((value == value ? nearest : bits | 0x400000) & 0xffff0000);
}
template <class E>
inline E number(E stored) {
  return stored;
}
inline float number(Bfloat16 stored) {
  const uint32_t bits = uint32_t(stored.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
inline V<float> load_part(const Bfloat16* from, int count) {
  Halves halves = {};
  if (count == Vector<float>::lanes) {
    memcpy(&halves, from, sizeof(halves));
  } else {
    memcpy(&halves, from, count * sizeof(Bfloat16));
  }
  return reinterpret_cast<V<float>>(__builtin_convertvector(halves, Vector<float>::Bits) << 16);
}
inline void store_part(Bfloat16* to, V<float> value, int count) {
  const Halves halves = __builtin_convertvector(reinterpret_cast<Vector<float>::Bits>(rounded(value)) >> 16, Halves);
  if (count == Vector<float>::lanes) {
    memcpy(to, &halves, sizeof(halves));
  } else {
    memcpy(to, &halves, count * sizeof(Bfloat16));
  }
}

// What the exponential needs, by type: the number whose sum rounds to an integer, ln 2 in two parts, where the exponential
// overflows and where it is zero, where tanh is one, and p of exp(r) = 1 + r + r^2 p(r) for |r| <= ln(2) / 2.
template <class E>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr float rounder = 12582912.0f, high = 0.693145751953125f, low = 1.42860676533018e-06f;
  static constexpr float largest = 88.7228317f, smallest = -103.9721f, saturation = 10.0f;
  static constexpr int mantissa = 23, bias = 127, degree = 4;
  static constexpr float p[] = {0.5f, 1.66665765831580e-01f, 4.16665541093467e-02f, 8.36324666975373e-03f,
                                1.39262680525705e-03f};
};
template <>
struct Exponential<double> {
  static constexpr double rounder = 6755399441055744.0, high = 6.93147180369123816490e-01,
                          low = 1.90821492927058770002e-10;
  static constexpr double largest = 709.782712893384, smallest = -745.1332, saturation = 20.0;
  static constexpr int mantissa = 52, bias = 1023, degree = 10;
  static constexpr double p[] = {5.00000000000000000000e-01, 1.66666666666666709795e-01, 4.16666666666666716009e-02,
                                 8.33333333332612339013e-03, 1.38888888888828456515e-03, 1.98412698748798102442e-04,
                                 2.48015873269358128680e-05, 2.75572553194082547908e-06, 2.75572729548253881591e-07,
                                 2.51052513748438852241e-08, 2.09147358087078600424e-09};
};

// x = n ln 2 + r: exp(r) - 1, and n in the low bits of `shifted`.
template <class E>
inline V<E> reduced(V<E> x, V<E>* shifted) {
  using C = Exponential<E>;
  *shifted = x * splat<E>(E(1.4426950408889634)) + splat<E>(C::rounder);
  const V<E> n = *shifted - splat<E>(C::rounder);
  const V<E> r = (x - n * splat<E>(C::high)) - n * splat<E>(C::low);
  V<E> p = splat<E>(C::p[C::degree]);
  for (int k = C::degree - 1; k >= 0; --k) p = p * r + splat<E>(C::p[k]);
  return r + r * r * p;
}

// 2^n for the n in the low bits of `shifted`, |n| less than the bias.
template <class E>
inline V<E> power(V<E> shifted, int offset) {
  using C = Exponential<E>;
  const auto n = reinterpret_cast<typename Vector<E>::Bits>(shifted) + typename Lane<E>::Bits(C::bias + offset);
  return reinterpret_cast<V<E>>(n << C::mantissa);
}

template <class E>
inline V<E> vector_exp(V<E> x) {
  using C = Exponential<E>;
  const M<E> small = x < splat<E>(C::smallest), large = x > splat<E>(C::largest);
  V<E> shifted;
  const V<E> most = reduced<E>(choose<E>(small | large, V<E>{}, x), &shifted);
  // In two factors, since 2^n itself may leave the range of normal numbers at either end.
  const M<E> down = x < V<E>{};
  const V<E> first = choose<E>(down, power<E>(shifted, 64), power<E>(shifted, -1));
  const V<E> second = choose<E>(down, splat<E>(E(5.421010862427522e-20)), splat<E>(E(2)));
  const V<E> value = (first + first * most) * second;
  return choose<E>(large, splat<E>(E(INFINITY)), choose<E>(small, V<E>{}, value));
}

// Bounded first, so that one factor is enough; past the bound the answer is 0 or 1 to the last bit, or next to it.
template <class E>
inline V<E> vector_logistic(V<E> x) {
  using C = Exponential<E>;
  const V<E> low = splat<E>(-C::largest + 1), high = splat<E>(C::largest - 1);
  const V<E> bounded = choose<E>(x < low, low, choose<E>(x > high, high, x));
  V<E> shifted;
  const V<E> most = reduced<E>(-bounded, &shifted);
  const V<E> scale = power<E>(shifted, 0);
  return splat<E>(1) / (splat<E>(1) + (scale + scale * most));
}

// exp(x) - 1 without cancellation, for |x| <= 2 * saturation.
template <class E>
inline V<E> bounded_expm1(V<E> x) {
  V<E> shifted;
  const V<E> most = reduced<E>(x, &shifted);
  const V<E> scale = power<E>(shifted, 0);
  return scale * most + (scale - splat<E>(1));
}

template <class E>
inline V<E> vector_tanh(V<E> x) {
  const V<E> bound = splat<E>(Exponential<E>::saturation);
  const V<E> bounded = choose<E>(x < -bound, -bound, choose<E>(x > bound, bound, x));
  const V<E> most = bounded_expm1<E>(bounded + bounded);
  return most / (most + splat<E>(2));
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
