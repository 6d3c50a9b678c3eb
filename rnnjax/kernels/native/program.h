// Runs a vector program on rows that sit in the first-level cache: one operation at a time, each over a whole row.
#pragma once

#include "interface.h"
#include "vector.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

template <class E, class Operation>
inline void each(E* to, const E* a, int64_t count, Operation operation) {
  for (int64_t i = 0; i < count; i += Vector<E>::lanes) store(to + i, operation(load(a + i)));
}
template <class E, class Operation>
inline void each(E* to, const E* a, const E* b, int64_t count, Operation operation) {
  for (int64_t i = 0; i < count; i += Vector<E>::lanes) store(to + i, operation(load(a + i), load(b + i)));
}
template <class E, class Operation>
inline void each_number(E* to, const E* a, int64_t count, Operation operation) {
  for (int64_t i = 0; i < count; ++i) to[i] = operation(a[i]);
}

template <class E>
inline V<E> truth(M<E> where) {
  return choose<E>(where, splat<E>(1), V<E>{});
}

template <class E>
inline E number_power(E a, E b);
template <>
inline float number_power(float a, float b) { return powf(a, b); }
template <>
inline double number_power(double a, double b) { return pow(a, b); }
template <class E>
inline E number_atan2(E a, E b);
template <>
inline float number_atan2(float a, float b) { return atan2f(a, b); }
template <>
inline double number_atan2(double a, double b) { return atan2(a, b); }

// The operations left to the C library, one number at a time: correct everywhere, and rare in recurrent cells.
#define RNNJAX_LIBRARY(NAME, FLOAT, DOUBLE)               \
  template <class E>                                      \
  struct NAME;                                            \
  template <>                                             \
  struct NAME<float> {                                    \
    float operator()(float x) const { return FLOAT(x); }  \
  };                                                      \
  template <>                                             \
  struct NAME<double> {                                   \
    double operator()(double x) const { return DOUBLE(x); } \
  };
RNNJAX_LIBRARY(Floor, floorf, floor)
RNNJAX_LIBRARY(Ceil, ceilf, ceil)
RNNJAX_LIBRARY(RoundEven, rintf, rint)
RNNJAX_LIBRARY(SquareRoot, sqrtf, sqrt)
RNNJAX_LIBRARY(Expm1, expm1f, expm1)
RNNJAX_LIBRARY(Log, logf, log)
RNNJAX_LIBRARY(Log1p, log1pf, log1p)
RNNJAX_LIBRARY(Sin, sinf, sin)
RNNJAX_LIBRARY(Cos, cosf, cos)
RNNJAX_LIBRARY(Tan, tanf, tan)
RNNJAX_LIBRARY(Asin, asinf, asin)
RNNJAX_LIBRARY(Acos, acosf, acos)
RNNJAX_LIBRARY(Atan, atanf, atan)
RNNJAX_LIBRARY(Sinh, sinhf, sinh)
RNNJAX_LIBRARY(Cosh, coshf, cosh)
RNNJAX_LIBRARY(Erf, erff, erf)
RNNJAX_LIBRARY(Erfc, erfcf, erfc)
#undef RNNJAX_LIBRARY

// `rows` holds a pointer for every register; `count` is a multiple of the lanes.
template <class E>
void execute(const Code& code, E* const* rows, int64_t count) {
  using X = V<E>;
  for (int64_t position = 0; position < code.instruction_count; ++position) {
    const Instruction& now = code.instructions[position];
    E* to = rows[now.destination];
    const E *a = rows[now.a], *b = rows[now.b], *c = rows[now.c];
    switch (now.operation) {
      case operation::neg: each(to, a, count, [](X x) { return -x; }); break;
      case operation::abs: each(to, a, count, [](X x) { return choose<E>(x < X{}, -x, x + X{}); }); break;
      case operation::sign:
        each(to, a, count, [](X x) { return choose<E>(x > X{}, splat<E>(1), choose<E>(x < X{}, splat<E>(-1), x)); });
        break;
      case operation::floor: each_number(to, a, count, Floor<E>()); break;
      case operation::ceil: each_number(to, a, count, Ceil<E>()); break;
      case operation::round_even: each_number(to, a, count, RoundEven<E>()); break;
      case operation::sqrt: each_number(to, a, count, SquareRoot<E>()); break;
      case operation::rsqrt: each_number(to, a, count, [](E x) { return 1 / SquareRoot<E>()(x); }); break;
      case operation::exp: each(to, a, count, [](X x) { return vector_exp<E>(x); }); break;
      case operation::expm1: each_number(to, a, count, Expm1<E>()); break;
      case operation::log: each_number(to, a, count, Log<E>()); break;
      case operation::log1p: each_number(to, a, count, Log1p<E>()); break;
      case operation::tanh: each(to, a, count, [](X x) { return vector_tanh<E>(x); }); break;
      case operation::logistic: each(to, a, count, [](X x) { return vector_logistic<E>(x); }); break;
      case operation::sin: each_number(to, a, count, Sin<E>()); break;
      case operation::cos: each_number(to, a, count, Cos<E>()); break;
      case operation::tan: each_number(to, a, count, Tan<E>()); break;
      case operation::asin: each_number(to, a, count, Asin<E>()); break;
      case operation::acos: each_number(to, a, count, Acos<E>()); break;
      case operation::atan: each_number(to, a, count, Atan<E>()); break;
      case operation::sinh: each_number(to, a, count, Sinh<E>()); break;
      case operation::cosh: each_number(to, a, count, Cosh<E>()); break;
      case operation::erf: each_number(to, a, count, Erf<E>()); break;
      case operation::erfc: each_number(to, a, count, Erfc<E>()); break;
      case operation::reciprocal: each(to, a, count, [](X x) { return splat<E>(1) / x; }); break;
      case operation::add: each(to, a, b, count, [](X x, X y) { return x + y; }); break;
      case operation::sub: each(to, a, b, count, [](X x, X y) { return x - y; }); break;
      case operation::mul: each(to, a, b, count, [](X x, X y) { return x * y; }); break;
      case operation::div: each(to, a, b, count, [](X x, X y) { return x / y; }); break;
      case operation::max: each(to, a, b, count, [](X x, X y) { return choose<E>((x > y) | (x != x), x, y); }); break;
      case operation::min: each(to, a, b, count, [](X x, X y) { return choose<E>((x < y) | (x != x), x, y); }); break;
      case operation::pow:
        for (int64_t i = 0; i < count; ++i) to[i] = number_power<E>(a[i], b[i]);
        break;
      case operation::atan2:
        for (int64_t i = 0; i < count; ++i) to[i] = number_atan2<E>(a[i], b[i]);
        break;
      case operation::lt: each(to, a, b, count, [](X x, X y) { return truth<E>(x < y); }); break;
      case operation::le: each(to, a, b, count, [](X x, X y) { return truth<E>(x <= y); }); break;
      case operation::gt: each(to, a, b, count, [](X x, X y) { return truth<E>(x > y); }); break;
      case operation::ge: each(to, a, b, count, [](X x, X y) { return truth<E>(x >= y); }); break;
      case operation::eq: each(to, a, b, count, [](X x, X y) { return truth<E>(x == y); }); break;
      case operation::ne: each(to, a, b, count, [](X x, X y) { return truth<E>(x != y); }); break;
      case operation::select:
        for (int64_t i = 0; i < count; i += Vector<E>::lanes)
          store(to + i, choose<E>(load(c + i) != X{}, load(a + i), load(b + i)));
        break;
      case operation::multiply_add:
        for (int64_t i = 0; i < count; i += Vector<E>::lanes) store(to + i, load(a + i) * load(b + i) + load(c + i));
        break;
    }
  }
}

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
