// How a thread waits for another that is at work: briefly, and without keeping a core that the other may need.
#pragma once

#include <sched.h>

namespace rnnjax {

// `static`: each instruction set has its copy, so that the linker cannot choose the wrong one.
static inline void relax(int& spins) {
  if (spins == 1000) {
    sched_yield();
    return;
  }
  ++spins;
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace rnnjax
