// What the entry points have in common: the instruction sets there are, checks of buffers, threads and scratch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cores.h"
#include "crew.h"
#include "interface.h"
#include "memory.h"
#include "processor.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace rnnjax {

#if defined(RNNJAX_X86_BF16)
namespace avx512_bf16 {
extern const Target target;
}
#endif
#if defined(RNNJAX_X86)
namespace avx512 {
extern const Target target;
}
namespace avx2 {
extern const Target target;
}

#endif
namespace portable {
extern const Target target;
}

// The code for the widest instruction set that this processor has, up to `max_instruction_set`.
inline const Target& target_of(int32_t max_instruction_set) {
#if defined(RNNJAX_X86)
  if (max_instruction_set >= 2 && has_avx512()) return avx512::target;
  if (max_instruction_set >= 1 && has_avx2()) return avx2::target;
#endif
  (void)max_instruction_set;
  return portable::target;
}

inline ffi::Error invalid(const std::string& message) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, message); }
inline ffi::Error out_of_memory() { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "rnnjax: out of memory"); }

#define RNNJAX_CHECK(CONDITION, MESSAGE) \
  if (!(CONDITION)) return invalid(std::string("rnnjax: ") + (MESSAGE))

using Dimensions = std::vector<int64_t>;

inline std::string described(ffi::DataType type, const Dimensions& dimensions) {
  std::ostringstream text;
  text << type;
  for (size_t k = 0; k < dimensions.size(); ++k) text << (k ? "," : "[") << dimensions[k];
  text << (dimensions.empty() ? "[]" : "]");
  return text.str();
}

// Why the buffer is not what it should be; empty if it is.
inline std::string misfit(const char* name, const ffi::AnyBuffer& buffer, ffi::DataType type, const Dimensions& expected) {
  const auto dimensions = buffer.dimensions();
  const Dimensions got(dimensions.begin(), dimensions.end());
  if (got == expected && buffer.element_type() == type) return "";
  return std::string("the shape or dtype of ") + name + " does not fit the others: expected " + described(type, expected) +
         ", got " + described(buffer.element_type(), got);
}

inline Memory& memory() {
  static Memory* kept = new Memory;  // never destroyed: a pool's thread may outlive the library's statics
  return *kept;
}

inline Team team_of(ffi::ThreadPool& pool) {
  return Team(std::clamp<int64_t>(pool.num_threads(), 1, cores()),
              [&pool](std::function<void()> help) { pool.Schedule(std::move(help)); });
}
inline Crew crew_of(Team& team) {
  return {team.threads(), &team,
          [](void* self, int64_t tasks, int64_t work, void (*task)(void*, int64_t), void* context) {
            static_cast<Team*>(self)->run(tasks, work, task, context);
          },
          [](void*, size_t bytes) { return memory().take(bytes); },
          [](void*, void* taken) { memory().give(taken); }};
}

}  // namespace rnnjax
