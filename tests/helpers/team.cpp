// For `test_cpu`: a team finishes every task once, whatever a pool does with the helpers that it is handed.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <new>
#include <thread>
#include <vector>

#include "crew.h"

using Helper = std::function<void()>;

constexpr int64_t TASKS = 50, TOO_LITTLE_WORK = 100, ENOUGH_WORK = int64_t(1) << 40;  // nanoseconds

struct Pool {
  const char* way;
  int scheduled = 0;
  std::vector<Helper> late;
  std::vector<std::thread> threads;

  bool is(const char* name) const { return strcmp(way, name) == 0; }
  void schedule(Helper helper) {
    ++scheduled;
    if (is("at_once")) helper();  // as a pool does whose queue is full, on the thread that schedules
    if (is("too_late")) late.push_back(helper);
    if (is("out_of_memory")) throw std::bad_alloc();
    if (is("on_threads")) threads.emplace_back(helper);
  }
};

int main(int, char** arguments) {
  Pool pool{arguments[1]};
  const auto task = [](void* done, int64_t index) { ++static_cast<std::atomic<int>*>(done)[index]; };
  std::atomic<int> done[TASKS] = {};
  constexpr int PHASES = 4;
  {
    rnnjax::Team team(4, [&](Helper helper) { pool.schedule(helper); });
    team.run(TASKS, TOO_LITTLE_WORK, task, done);
    if (pool.scheduled) return printf("a thread was woken up for nothing\n"), 1;
    for (int phase = 1; phase < PHASES; ++phase) team.run(TASKS, ENOUGH_WORK, task, done);
  }
  for (Helper& helper : pool.late) helper();  // the team is no more
  for (std::thread& thread : pool.threads) thread.join();
  for (const std::atomic<int>& count : done)
    if (count != PHASES) return printf("a task was done %d times in %d phases\n", count.load(), PHASES), 1;
  return 0;
}
