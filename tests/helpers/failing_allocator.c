// Preloaded for `memory_run.py`: of the allocations that the kernel asks for, number `failing` from now on fails.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <string.h>

int failing = 0;

int posix_memalign(void **memory, size_t alignment, size_t bytes) {
  Dl_info caller;
  if (failing && dladdr(__builtin_return_address(0), &caller) && strstr(caller.dli_fname, "another_rnnjax") &&
      __atomic_sub_fetch(&failing, 1, __ATOMIC_SEQ_CST) == 0)
    return ENOMEM;
  *memory = memalign(alignment, bytes);
  return *memory ? 0 : ENOMEM;
}
