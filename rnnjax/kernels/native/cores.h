// How many cores this process may use at once. A pool may have more threads, and those would wait for each other.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

namespace rnnjax {

// The share of the machine's time that a container may take, in cores; none if there is no limit (cgroups v2, then v1).
inline int64_t quota() {
  double time = 0, period = 0;
  std::string text;
  if (std::ifstream file("/sys/fs/cgroup/cpu.max"); file >> text >> period) {
    if (text == "max") return INT64_MAX;
    time = std::strtod(text.c_str(), nullptr);
  } else {
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> time;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  }
  if (!(time > 0 && period > 0)) return INT64_MAX;
  return std::max<int64_t>(1, int64_t(std::ceil(time / period)));
}

inline int64_t cores() {
  static const int64_t allowed = quota();
#if defined(__linux__)
  cpu_set_t affinity;  // a user may change it while the process runs; to ask takes less than a microsecond
  if (sched_getaffinity(0, sizeof affinity, &affinity) == 0)
    return std::max<int64_t>(1, std::min<int64_t>(CPU_COUNT(&affinity), allowed));
#endif
  static const int64_t online = sysconf(_SC_NPROCESSORS_ONLN);  // which reads a file
  return std::max<int64_t>(1, std::min(online, allowed));
}

}  // namespace rnnjax
