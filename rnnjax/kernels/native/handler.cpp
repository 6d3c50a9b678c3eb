// The entry points that XLA calls: buffers are checked against each other, then handed to the best instruction set here.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "host.h"
#include "interface.h"

namespace rnnjax {

static const Kernel& kernel_of(ffi::DataType type, const Target& target) {
  return type == ffi::DataType::F32 ? target.float32 : type == ffi::DataType::F64 ? target.float64 : target.bfloat16;
}

// That of the widest instruction set that this processor has, up to `max_instruction_set`.
static const Kernel& kernel_of(ffi::DataType type, int32_t max_instruction_set) {
#if defined(RNNJAX_X86_BF16)
  if (type == ffi::DataType::BF16 && max_instruction_set >= 3 && processor().pairs) return avx512_bf16::target.bfloat16;
#endif
  return kernel_of(type, target_of(max_instruction_set));
}

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
static std::string fault_of(const Attributes& attributes, const Shape& shape, int64_t inputs, int64_t outputs) {
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

static Code code_of(const Attributes& attributes, int64_t inputs) {
  return {reinterpret_cast<const Instruction*>(attributes.instructions.begin()),
          int64_t(attributes.instructions.size() / 5),
          attributes.constants.begin(),
          int64_t(attributes.constants.size()),
          attributes.outputs.begin(),
          int64_t(attributes.outputs.size()),
          int32_t(inputs),
          attributes.registers};
}

// In each group the longest sequence first; lengths are brought into [0, T].
struct Order {
  std::vector<int64_t> order;
  std::vector<int32_t> length;

  Order(const int32_t* given, const Shape& shape) {
    for (int64_t k = 0; k < shape.S * shape.B; ++k) {
      length.push_back(std::min<int32_t>(std::max<int32_t>(given[k], 0), int32_t(shape.T)));
      order.push_back(k);
    }
    for (int64_t group = 0; group < shape.S; ++group)
      std::stable_sort(order.begin() + group * shape.B, order.begin() + (group + 1) * shape.B,
                       [&](int64_t a, int64_t b) { return length[a] > length[b]; });
  }
};

// The parts of both calls: sizes from xs, R, unit_parameters and state; then every argument they share.
static std::string take_problem(Buffers& arguments, const Attributes& attributes, Shape& shape, Problem& problem) {
  const auto& given = arguments.buffers;
  if (given.size() < 9) return "expected more arguments";
  const auto xs = given[0].dimensions(), state = given[1].dimensions();
  const auto R = given[6].dimensions(), unit_parameters = given[7].dimensions();
  if (xs.size() != 4 || state.size() != 4 || R.size() != 5 || unit_parameters.size() != 3) return "expected other ranks";
  shape = {xs[0], xs[1], xs[2], xs[3], R[1], R[2], R[3], state[2], unit_parameters[1], 
           int64_t(attributes.pre_activations.size() / 3)};
  if (shape.T > INT32_MAX) return "T is too large";
  if (attributes.pre_activations.size() % 3) return "a part of a pre-activation";
  const int64_t H = shape.N * shape.D;
  problem.processor = processor();
  problem.pre_activations = reinterpret_cast<const PreActivation*>(attributes.pre_activations.begin());
  problem.xs = arguments.take("xs", arguments.stored, {shape.S, shape.B, shape.T, shape.I});
  problem.state = arguments.take("state", {shape.S, shape.B, shape.F, H});
  problem.length = static_cast<const int32_t*>(arguments.take("length", ffi::DataType::S32, {shape.S, shape.B}, true));
  problem.resets = static_cast<const uint8_t*>(
      arguments.take("resets", ffi::DataType::PRED, {shape.S, shape.B, shape.T}, true));
  problem.W = arguments.shared("W", arguments.stored, shape.S, {shape.I, shape.G, H});
  problem.b = arguments.shared("b", arguments.stored, shape.S, {shape.G, H});
  problem.R = arguments.shared("R", arguments.stored, shape.S, {shape.N, shape.D, shape.G, shape.D});
  problem.unit_parameters = arguments.shared("unit_parameters", arguments.computed, shape.S, {shape.K, H});
  problem.initial = arguments.shared("initial", arguments.computed, shape.S, {shape.F, H});
  problem.shape = shape;
  return arguments.fault;
}

template <class Call>
static ffi::Error run(Call& call, bool (*half)(const Call&, const Crew&), ffi::ThreadPool pool) {
  Problem& problem = call.problem;
  std::unique_ptr<Order> order;
  if (problem.length) {
    order = std::make_unique<Order>(problem.length, problem.shape);
    problem.length = order->length.data();
    problem.order = order->order.data();
  }
  Team team = team_of(pool);
  return half(call, crew_of(team)) ? ffi::Error::Success() : out_of_memory();
}

static std::string collect(ffi::RemainingArgs arguments, ffi::RemainingRets results, Buffers& from, Buffers& to) {
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
  if (from.buffers.empty()) return "expected arguments, got none";
  const ffi::DataType type = from.buffers[0].element_type();
  if (type != ffi::DataType::F32 && type != ffi::DataType::F64 && type != ffi::DataType::BF16)
    return "expected float32, float64 or bfloat16";
  from.stored = to.stored = type;
  from.computed = to.computed = type == ffi::DataType::BF16 ? ffi::DataType::F32 : type;
  return "";
}

// A call of either half, once all of its buffers have been taken: what is wrong with it, or its results.
template <class Call>
static ffi::Error checked_run(Call& call, bool (*Kernel::*half)(const Call&, const Crew&), const Buffers& from,
                              const Buffers& to, const Attributes& attributes, ffi::ThreadPool pool) {
  RNNJAX_CHECK(from.fault.empty(), from.fault);
  RNNJAX_CHECK(to.fault.empty(), to.fault);
  RNNJAX_CHECK(from.next == from.buffers.size() && to.next == to.buffers.size(), "more buffers than expected");
  const Shape& shape = call.problem.shape;
  if (shape.S * shape.B * shape.N * shape.D == 0) {
    for (const auto& buffer : to.buffers) std::fill_n(static_cast<char*>(buffer.untyped_data()), buffer.size_bytes(), 0);
    return ffi::Error::Success();
  }
  return run(call, kernel_of(from.stored, attributes.max_instruction_set).*half, pool);
}

// Arguments xs, state, length, resets, W, b, R, unit parameters, initial; results states (F of them), last, residuals.
// Results that are not used have no elements.
static ffi::Error forward(ffi::ThreadPool pool, Buffers& from, Buffers& to, const Attributes& attributes) {
  Forward call = {};
  Shape shape = {};
  std::string fault = take_problem(from, attributes, shape, call.problem);
  const int64_t inputs = shape.C + shape.F + shape.K;
  if (fault.empty()) fault = fault_of(attributes, shape, inputs, shape.F + shape.C);
  RNNJAX_CHECK(fault.empty(), fault);
  call.problem.code = code_of(attributes, inputs);
  const int64_t H = shape.N * shape.D;
  std::vector<void*> states;
  for (int64_t f = 0; f < shape.F; ++f) states.push_back(to.take("states", {shape.S, shape.B, shape.T, H}, true));
  call.states = states.data();
  call.last = to.take("last", {shape.S, shape.B, shape.F, H});
  call.residuals = to.take("residuals", {shape.S, shape.B, shape.T, shape.C, H}, true);
  return checked_run(call, &Kernel::forward, from, to, attributes, pool);
}

// Arguments those of the forward half, residuals, dlast, states (F), dstates (F); results dxs, dW, db, dR, dunit_parameters,
// dinitial, dstate. Cotangents that are absent, and results that are not needed, have no elements.
static ffi::Error backward(ffi::ThreadPool pool, Buffers& from, Buffers& to, const Attributes& attributes) {
  Backward call = {};
  Shape shape = {};
  std::string fault = take_problem(from, attributes, shape, call.problem);
  const int64_t inputs = shape.C + 2 * shape.F + shape.K;
  if (fault.empty()) fault = fault_of(attributes, shape, inputs, shape.C + shape.F + shape.K);
  RNNJAX_CHECK(fault.empty(), fault);
  call.problem.code = code_of(attributes, inputs);
  const int64_t S = shape.S, H = shape.N * shape.D;
  const Dimensions over_time = {S, shape.B, shape.T, H};
  call.residuals = from.take("residuals", {S, shape.B, shape.T, shape.C, H});
  call.dlast = from.take("dlast", {S, shape.B, shape.F, H}, true);
  std::vector<const void*> states, dstates;
  for (int64_t f = 0; f < shape.F; ++f) states.push_back(from.take("states", over_time));
  for (int64_t f = 0; f < shape.F; ++f) dstates.push_back(from.take("dstates", over_time, true));
  call.states = states.data();
  call.dstates = dstates.data();
  call.dxs = to.take("dxs", to.stored, {S, shape.B, shape.T, shape.I}, true);
  call.dW = to.take("dW", {S, shape.I, shape.G, H}, true);
  call.db = to.take("db", {S, shape.G, H}, true);
  call.dR = to.take("dR", {S, shape.N, shape.D, shape.G, shape.D}, true);
  call.dunit_parameters = to.take("dunit_parameters", {S, shape.K, H}, true);
  call.dinitial = to.take("dinitial", {S, shape.F, H}, true);
  call.dstate = to.take("dstate", {S, shape.B, shape.F, H}, true);
  return checked_run(call, &Kernel::backward, from, to, attributes, pool);
}

// What XLA calls: collects the buffers of either half. There may be no memory for lists of them.
template <ffi::Error (*half)(ffi::ThreadPool, Buffers&, Buffers&, const Attributes&)>
static ffi::Error entry(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                        ffi::Span<const int32_t> instructions, ffi::Span<const int32_t> outputs,
                        ffi::Span<const int32_t> pre_activations, ffi::Span<const double> constants, int32_t registers,
                        int32_t max_instruction_set) try {
  Buffers from, to;
  const std::string fault = collect(arguments, results, from, to);
  RNNJAX_CHECK(fault.empty(), fault);
  return half(pool, from, to, {instructions, outputs, pre_activations, constants, registers, max_instruction_set});
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

}  // namespace rnnjax

#define RNNJAX_BINDING                                     \
  ffi::Ffi::Bind()                                         \
      .Ctx<ffi::ThreadPool>()                              \
      .RemainingArgs()                                     \
      .RemainingRets()                                     \
      .Attr<ffi::Span<const int32_t>>("instructions")      \
      .Attr<ffi::Span<const int32_t>>("outputs")           \
      .Attr<ffi::Span<const int32_t>>("pre_activations")           \
      .Attr<ffi::Span<const double>>("constants")          \
      .Attr<int32_t>("registers")                          \
      .Attr<int32_t>("max_instruction_set")

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rnnjax_forward, rnnjax::entry<rnnjax::forward>, RNNJAX_BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(rnnjax_backward, rnnjax::entry<rnnjax::backward>, RNNJAX_BINDING);
extern "C" int32_t rnnjax_interface() { return rnnjax::INTERFACE; }
extern "C" const char* rnnjax_operations() { return rnnjax::operation::names; }
#pragma GCC visibility pop
