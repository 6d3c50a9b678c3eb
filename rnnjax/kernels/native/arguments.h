// The arguments of a call that runs a vector program: buffers taken one by one, and a program that is checked before it runs.
#pragma once

#include <cstdint>
#include <new>
#include <string>
#include <vector>

#include "host.h"
#include "interface.h"

namespace rnnjax {

// The arguments, or the results, one by one.
struct Buffers {
  std::vector<ffi::AnyBuffer> buffers;
  std::string fault;
  size_t next = 0;
  ffi::DataType stored = ffi::DataType::INVALID, computed = ffi::DataType::INVALID;  // of xs, W, b and R; of the others

  // A buffer of these dimensions; or, where `optional`, one without elements, which stands for none.
  void* take(const char* name, ffi::DataType expected, const Dimensions& dimensions, bool optional = false) {
    if (next >= buffers.size()) {
      if (fault.empty()) fault = std::string("expected a buffer for ") + name + ", got none";
      return nullptr;
    }
    const ffi::AnyBuffer& buffer = buffers[next++];
    if (optional && buffer.element_count() == 0) return nullptr;
    if (fault.empty()) fault = misfit(name, buffer, expected, dimensions);
    return buffer.untyped_data();
  }
  void* take(const char* name, const Dimensions& dimensions, bool optional = false) {
    return take(name, computed, dimensions, optional);
  }
  // One that leads with S, or with 1 where it is shared.
  Shared shared(const char* name, ffi::DataType type, int64_t groups, Dimensions dimensions) {
    int64_t size = 1;
    for (int64_t dimension : dimensions) size *= dimension;
    const bool each = next < buffers.size() && buffers[next].dimensions().size() &&
                      buffers[next].dimensions()[0] != 1;
    dimensions.insert(dimensions.begin(), each ? groups : 1);
    return {take(name, type, dimensions), each ? size : 0};
  }
};

struct Attributes {
  ffi::Span<const int32_t> instructions, outputs, pre_activations;
  ffi::Span<const double> constants;
  int32_t registers, max_instruction_set;
};

// That the program reads and writes what it has, and that every gate gets each product once.
inline std::string fault_of(const Attributes& attributes, const Shape& shape, int64_t inputs, int64_t outputs) {
  const auto& code = attributes.instructions;
  if (code.size() % 5) return "the program has a part of an instruction";
  if (attributes.registers > MOST_REGISTERS || attributes.registers < 0) return "the program has too many registers";
  if (shape.F < 1) return "the state has no fields";
  if (shape.C > MOST_PRE_ACTIVATIONS || shape.F > MOST_FIELDS || shape.K > MOST_UNIT_PARAMETERS)
    return "too many pre-activations, fields or unit parameters";
  const int64_t fixed = inputs + int64_t(attributes.constants.size());
  if (fixed > attributes.registers) return "the program has fewer registers than inputs and constants";
  for (size_t k = 0; k < code.size(); k += 5) {
    if (code[k] < 0 || code[k] >= operation::count) return "the program has an unknown operation";
    if (code[k + 1] < fixed || code[k + 1] >= attributes.registers) return "the program writes where it must not";
    for (size_t operand = 2; operand < 5; ++operand)
      if (code[k + operand] < 0 || code[k + operand] >= attributes.registers) return "the program reads where it must not";
  }
  if (int64_t(attributes.outputs.size()) != outputs) return "the program has too few or too many outputs";
  for (int32_t output : attributes.outputs)
    if (output < 0 || output >= attributes.registers) return "the program returns what it does not have";
  std::vector<int> input(shape.G), recurrent(shape.G);
  for (size_t c = 0; c < attributes.pre_activations.size(); c += 3) {
    const int32_t gate = attributes.pre_activations[c];
    if (gate < 0 || gate >= shape.G) return "a pre-activation has the number of no gate";
    input[gate] += attributes.pre_activations[c + 1] != 0;
    recurrent[gate] += attributes.pre_activations[c + 2] != 0;
  }
  for (int64_t gate = 0; gate < shape.G; ++gate)
    if (input[gate] != 1 || recurrent[gate] != 1) return "a gate does not get each product once";
  return "";
}

inline Code code_of(const Attributes& attributes, int64_t inputs) {
  return {reinterpret_cast<const Instruction*>(attributes.instructions.begin()),
          int64_t(attributes.instructions.size() / 5),
          attributes.constants.begin(),
          int64_t(attributes.constants.size()),
          attributes.outputs.begin(),
          int64_t(attributes.outputs.size()),
          int32_t(inputs),
          attributes.registers};
}

// All buffers of a call. Results are fresh memory.
inline std::string collect(ffi::RemainingArgs arguments, ffi::RemainingRets results, Buffers& from, Buffers& to) {
  for (size_t k = 0; k < arguments.size(); ++k) {
    auto buffer = arguments.get<ffi::AnyBuffer>(k);
    if (!buffer.has_value()) return "an argument is no buffer";
    from.buffers.push_back(*buffer);
  }
  for (size_t k = 0; k < results.size(); ++k) {
    auto buffer = results.get<ffi::AnyBuffer>(k);
    if (!buffer.has_value()) return "a result is no buffer";
    to.buffers.push_back(**buffer);
    advise_huge((*buffer)->untyped_data(), (*buffer)->size_bytes());
  }
  return from.buffers.empty() ? "expected arguments, got none" : "";
}

// What XLA calls: `call`, once its buffers are collected. There may be no memory for lists of them.
template <ffi::Error (*call)(ffi::ThreadPool, Buffers&, Buffers&, const Attributes&)>
ffi::Error entry(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                        ffi::Span<const int32_t> instructions, ffi::Span<const int32_t> outputs,
                        ffi::Span<const int32_t> pre_activations, ffi::Span<const double> constants, int32_t registers,
                        int32_t max_instruction_set) try {
  Buffers from, to;
  const std::string fault = collect(arguments, results, from, to);
  RNNJAX_CHECK(fault.empty(), fault);
  return call(pool, from, to, {instructions, outputs, pre_activations, constants, registers, max_instruction_set});
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

#define RNNJAX_BINDING                                \
  ffi::Ffi::Bind()                                    \
      .Ctx<ffi::ThreadPool>()                         \
      .RemainingArgs()                                \
      .RemainingRets()                                \
      .Attr<ffi::Span<const int32_t>>("instructions") \
      .Attr<ffi::Span<const int32_t>>("outputs")      \
      .Attr<ffi::Span<const int32_t>>("pre_activations") \
      .Attr<ffi::Span<const double>>("constants")     \
      .Attr<int32_t>("registers")                     \
      .Attr<int32_t>("max_instruction_set")

}  // namespace rnnjax
