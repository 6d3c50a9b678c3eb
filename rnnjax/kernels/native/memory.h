// Scratch that is kept from call to call: fresh pages cost more than what is computed in them.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <mutex>
#include <new>

namespace rnnjax {

constexpr size_t HUGE_PAGE = size_t(2) << 20, PAGE = size_t(4) << 10;

// Asks for huge pages in the whole pages of a large, fresh block, where faults would cost more than what is computed;
// only a hint, refused in silence.
inline void advise_huge(void* memory, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  if (bytes < 4 * HUGE_PAGE) return;
  const uintptr_t begin = (uintptr_t(memory) + PAGE - 1) / PAGE * PAGE, end = (uintptr_t(memory) + bytes) / PAGE * PAGE;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

class Memory {
 public:
  // At least `bytes`, aligned to 64; null when there is none to be had.
  void* take(size_t bytes) {
    if (Block* kept = take_kept(bytes)) return kept + 1;
    void* memory = nullptr;
    if (posix_memalign(&memory, bytes >= HUGE_PAGE ? HUGE_PAGE : 64, sizeof(Block) + bytes)) return nullptr;
    advise_huge(memory, bytes);
    return new (memory) Block{bytes} + 1;
  }

  // Keeps the block where there is room, or where a smaller one can go.
  void give(void* memory) {
    Block* block = static_cast<Block*>(memory) - 1;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      Block** place = &blocks_[0];
      for (Block*& kept : blocks_)
        if (size_of(kept) < size_of(*place)) place = &kept;
      if (block->bytes <= MOST_KEPT && block->bytes > size_of(*place)) {
        Block* smaller = *place;
        *place = block;
        block = smaller;
      }
    }
    free(block);
  }

 private:
  static constexpr size_t MOST_KEPT = size_t(32) << 20;
  struct alignas(64) Block {
    size_t bytes;
  };

  static size_t size_of(const Block* block) { return block ? block->bytes : 0; }

  Block* take_kept(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Block** best = nullptr;
    for (Block*& kept : blocks_)
      if (kept && kept->bytes >= bytes && kept->bytes / 4 <= bytes && (!best || kept->bytes < (*best)->bytes)) best = &kept;
    if (!best) return nullptr;
    Block* found = *best;
    *best = nullptr;
    return found;
  }

  std::mutex mutex_;
  Block* blocks_[8] = {};
};

}  // namespace rnnjax
