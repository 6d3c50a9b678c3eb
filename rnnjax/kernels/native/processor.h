// Which processor is here: what it can do, and what it does best. All that is known of processors is in this file.
#pragma once

#include "interface.h"

namespace rnnjax {

#if defined(RNNJAX_X86)
inline bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
inline bool has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

// | processor                     | products of 512 bits in a cycle | of pairs of bfloat16 |
// | AMD, family 19h (Zen 4)       | 1                               | 1: twice the numbers |
// | AMD, later                    | 2                               | 2: twice the numbers |
// | Intel, with AVX-512           | 2                               | 1: as many numbers   |
inline Processor processor() {
  __builtin_cpu_init();
  const bool amd = __builtin_cpu_is("amd"), zen4 = __builtin_cpu_is("amdfam19h");
  return {zen4 ? 1 : 2, amd && has_avx512() && __builtin_cpu_supports("avx512bf16")};
}
#else
inline Processor processor() { return {2, false}; }
#endif

}  // namespace rnnjax
