// Several threads that take one tile through time together, each with hidden units of its own.
#pragma once

#include <stdint.h>

#include "spin.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

// A member of a gang: its number, and of how many.
struct Member {
  int64_t number = 0, members = 1;

  int64_t begin(int64_t count) const { return count * number / members; }
  int64_t end(int64_t count) const { return count * (number + 1) / members; }
};

// The owner of a tile goes ahead alone, and others join when they come. Time is cut into sections: at the beginning of
// each, the owner counts who is there, and these go through it in step. So nobody waits for who has not joined.
// Of every section all know the same: `key`, which grows from one to the next, and how many members there are.
class Gang {
 public:
  static constexpr int64_t MOST = 16;

  void* shared = nullptr;  // what the owner has for all; to be read once in a section

  // The owner's.
  Member open(int64_t key) {
    const int64_t members = 1 + least_of(__atomic_load_n(&joined_, __ATOMIC_ACQUIRE), MOST - 1);
    __atomic_store_n(&word_, key * MOST_WORD + members, __ATOMIC_RELEASE);
    return {0, members};
  }
  // At the end, or where there is none to wait for, at once.
  void close(const Member& owner, int64_t key) {
    meet(owner, key, DONE);
    __atomic_store_n(&word_, CLOSED, __ATOMIC_RELEASE);
  }

  // A helper's: its number, 0 where it comes too late, or there are enough.
  int64_t join() {
    if (__atomic_load_n(&word_, __ATOMIC_ACQUIRE) == CLOSED) return 0;
    const int64_t number = 1 + __atomic_fetch_add(&joined_, 1, __ATOMIC_ACQ_REL);
    return number < MOST ? number : 0;
  }
  // Waits for the section after `key` in which the helper takes part, and enters it; false if there is none.
  bool enter(int64_t number, int64_t* key, Member* member) {
    for (int spins = 0;; relax(spins)) {
      const int64_t word = __atomic_load_n(&word_, __ATOMIC_ACQUIRE);
      if (word == CLOSED) return false;
      if (word / MOST_WORD <= *key || word % MOST_WORD <= number) continue;
      *key = word / MOST_WORD;
      *member = {number, word % MOST_WORD};
      return true;
    }
  }
  // A helper has done its part of the section.
  void done(const Member& member, int64_t key) { arrive(member, key, DONE); }

  // Waits until all are here; `phase` counts the meetings of one section.
  void meet(const Member& member, int64_t key, int64_t phase) {
    if (member.members == 1) return;
    arrive(member, key, phase);
    for (int64_t other = 0; other < member.members; ++other)
      for (int spins = 0; __atomic_load_n(&places_[other].place, __ATOMIC_ACQUIRE) < place(key, phase);) relax(spins);
  }

 private:
  static constexpr int64_t MOST_WORD = 64, CLOSED = INT64_MAX, DONE = INT32_MAX;
  struct alignas(64) Place {
    int64_t place = 0;
  };

  static int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
  static int64_t place(int64_t key, int64_t phase) { return (key << 32) + phase; }
  void arrive(const Member& member, int64_t key, int64_t phase) {
    __atomic_store_n(&places_[member.number].place, place(key, phase), __ATOMIC_RELEASE);
  }

  alignas(64) int64_t word_ = 0;
  alignas(64) int64_t joined_ = 0;
  Place places_[MOST];
};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
