// Tasks for whoever has time: the caller, and threads of a pool that may come late or not at all.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>

#include "interface.h"
#include "spin.h"

namespace rnnjax {

// Tasks are claimed one by one, in order, from an atomic counter, so the caller can finish alone, and the only thing ever
// waited for is a task that somebody has begun. Helpers stay no longer than there is something to claim. One that comes
// after the end finds nothing; what it looks at then is shared with it, and outlives the call. A full pool may run a
// helper at once, on the caller's own thread: that one claims, too, and goes.
class Team {
 public:
  using Schedule = std::function<void(std::function<void()>)>;

  Team(int64_t threads, Schedule schedule) : threads_(threads), schedule_(schedule), work_(std::make_shared<Work>()) {}
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int64_t threads() const { return threads_; }

  // At most MOST_PHASES times. `work` in nanoseconds of one thread: to wake another up takes this one WORTH of them.
  void run(int64_t tasks, int64_t work, void (*task)(void*, int64_t), void* context) {
    Phase& phase = work_->phases[phases_++];
    phase.task = task;
    phase.context = context;
    phase.tasks = tasks;
    phase.next.store(0, std::memory_order_release);
    for (int64_t helpers = 1; helpers < tasks && helpers < threads_ && helpers <= work / WORTH; ++helpers)
      if (!call_for_help(phase)) break;
    work_on(phase);
    for (int spins = 0; phase.done.load(std::memory_order_acquire) < tasks;) relax(spins);
  }

 private:
  static constexpr int MOST_PHASES = 4;
  static constexpr int64_t WORTH = 30000;
  static constexpr int64_t NONE = INT64_MAX / 2;  // the next task of a phase that has not begun

  struct Phase {
    void (*task)(void*, int64_t);
    void* context;
    int64_t tasks = 0;
    std::atomic<int64_t> next{NONE}, done{0};
  };
  struct Work {
    Phase phases[MOST_PHASES];
  };

  // False where there is no memory for it: those who are there do it then.
  bool call_for_help(Phase& phase) {
    try {
      schedule_([work = work_, &phase] { work_on(phase); });
      return true;
    } catch (const std::bad_alloc&) {
      return false;
    }
  }

  static void work_on(Phase& phase) {
    for (;;) {
      const int64_t index = phase.next.fetch_add(1, std::memory_order_acq_rel);
      if (index >= phase.tasks) return;
      phase.task(phase.context, index);
      phase.done.fetch_add(1, std::memory_order_release);
    }
  }

  int64_t threads_;
  Schedule schedule_;
  std::shared_ptr<Work> work_;
  int phases_ = 0;
};

}  // namespace rnnjax
