// Tasks for whoever has time: the caller, and threads of a pool that may come late or not at all.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "interface.h"
#include "spin.h"

namespace rnnjax {

// Tasks are claimed one by one from an atomic counter, so the caller can always finish alone, and the only thing ever
// waited for is a task that somebody has begun. A helper that comes after the end finds nothing to claim; what it looks
// at then is shared with it, and outlives the call.
class Team {
 public:
  using Schedule = std::function<void(std::function<void()>)>;

  Team(int64_t threads, Schedule schedule) : threads_(threads), schedule_(schedule), work_(std::make_shared<Work>()) {}
  ~Team() { work_->closed.store(true, std::memory_order_release); }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int64_t threads() const { return threads_; }

  // At most MOST_PHASES times.
  void run(int64_t tasks, void (*task)(void*, int64_t), void* context) {
    Phase& phase = work_->phases[phases_++];
    phase.task = task;
    phase.context = context;
    phase.tasks = tasks;
    work_->published.store(phases_, std::memory_order_release);
    const int64_t helpers = (tasks < threads_ ? tasks : threads_) - 1;
    for (; helpers_ < helpers; ++helpers_) schedule_([work = work_] { help(*work); });
    work_on(phase);
    for (int spins = 0; phase.done.load(std::memory_order_acquire) < tasks;) relax(++spins);
  }

 private:
  static constexpr int MOST_PHASES = 4;

  struct Phase {
    void (*task)(void*, int64_t);
    void* context;
    int64_t tasks;
    std::atomic<int64_t> next{0}, done{0};
  };
  struct Work {
    Phase phases[MOST_PHASES];
    std::atomic<int> published{0};
    std::atomic<bool> closed{false};
  };

  static void work_on(Phase& phase) {
    for (;;) {
      const int64_t index = phase.next.fetch_add(1, std::memory_order_relaxed);
      if (index >= phase.tasks) return;
      phase.task(phase.context, index);
      phase.done.fetch_add(1, std::memory_order_release);
    }
  }

  // Between phases it waits for a caller that is at work, so never for long.
  static void help(Work& work) {
    int finished = 0;
    for (int spins = 0;;) {
      while (finished < work.published.load(std::memory_order_acquire)) work_on(work.phases[finished++]), spins = 0;
      if (work.closed.load(std::memory_order_acquire)) return;
      relax(++spins);
    }
  }

  int64_t threads_;
  Schedule schedule_;
  std::shared_ptr<Work> work_;
  int phases_ = 0;
  int64_t helpers_ = 0;
};

}  // namespace rnnjax
