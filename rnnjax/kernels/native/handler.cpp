// The entry points that XLA calls: buffers are checked against each other, then handed to the best instruction set here.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "arguments.h"

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

// The dtypes of a call, by that of xs.
static std::string take_types(Buffers& from, Buffers& to) {
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
  std::string fault = take_types(from, to);
  if (fault.empty()) fault = take_problem(from, attributes, shape, call.problem);
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
  std::string fault = take_types(from, to);
  if (fault.empty()) fault = take_problem(from, attributes, shape, call.problem);
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

}  // namespace rnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rnnjax_forward, rnnjax::entry<rnnjax::forward>, RNNJAX_BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(rnnjax_backward, rnnjax::entry<rnnjax::backward>, RNNJAX_BINDING);
extern "C" int32_t rnnjax_interface() { return rnnjax::INTERFACE; }
extern "C" const char* rnnjax_operations() { return rnnjax::operation::names; }
#pragma GCC visibility pop
