// The entry point of prepared weights: buffers are checked against each other, then handed to the best code here.
#include "arguments.h"

namespace rnnjax {

static PreparedCode code_of(ffi::DataType computed, ffi::DataType stored, const Target& target) {
  const bool single = computed == ffi::DataType::F32;
  if (!single && computed != ffi::DataType::F64) return nullptr;
  const PreparedKernel& kernel = single ? target.prepared->float32 : target.prepared->float64;
  if (stored == computed) return kernel.full;
  return stored == ffi::DataType::BF16 ? kernel.bfloat16 : stored == ffi::DataType::S8 ? kernel.int8 : nullptr;
}

// One that leads with S or 1, or has no elements and stands for none.
static Shared take_scale(Buffers& arguments, const char* name, const Shape& shape) {
  if (arguments.next < arguments.buffers.size() && arguments.buffers[arguments.next].element_count() == 0) {
    ++arguments.next;
    return {nullptr, 0};
  }
  return arguments.shared(name, arguments.computed, shape.S, {shape.G, shape.N * shape.D});
}

// Sizes from xs, state, R and unit_parameters; then every argument.
static std::string take_problem(Buffers& arguments, const Attributes& attributes, PreparedCode code, Prepared& call) {
  const auto& given = arguments.buffers;
  if (given.size() < 11) return "expected more arguments";
  if (!code) return "expected states of float32 or float64, and weights of their dtype, bfloat16 or int8";
  const auto xs = given[0].dimensions(), state = given[1].dimensions(), R = given[6].dimensions();
  const auto unit_parameters = given[7].dimensions();
  if (xs.size() != 4 || state.size() != 4 || R.size() != 5 || unit_parameters.size() != 3) return "expected other ranks";
  const int64_t H = state[3], D = R[2];
  if (D ? H % D : H) return "the state is not of whole heads";
  if (xs[2] > INT32_MAX) return "T is too large";
  if (attributes.pre_activations.size() % 3) return "a part of a pre-activation";
  Problem& problem = call.problem;
  problem.shape = {xs[0], xs[1], xs[2], xs[3], D ? H / D : 0, D, R[3], state[2], unit_parameters[1],
                   int64_t(attributes.pre_activations.size() / 3)};
  const Shape& shape = problem.shape;
  const int64_t blocks = shape.N * ((D + PREPARED_UNITS - 1) / PREPARED_UNITS);
  problem.pre_activations = reinterpret_cast<const PreActivation*>(attributes.pre_activations.begin());
  problem.xs = arguments.take("xs", {shape.S, shape.B, shape.T, shape.I});
  problem.state = arguments.take("state", {shape.S, shape.B, shape.F, H});
  problem.length = static_cast<const int32_t*>(arguments.take("length", ffi::DataType::S32, {shape.S, shape.B}, true));
  problem.resets = static_cast<const uint8_t*>(
      arguments.take("resets", ffi::DataType::PRED, {shape.S, shape.B, shape.T}, true));
  problem.W = arguments.shared("W", arguments.stored, shape.S, {blocks, shape.I, shape.G, PREPARED_UNITS});
  problem.b = arguments.shared("b", arguments.computed, shape.S, {shape.G, H});
  problem.R = arguments.shared("R", arguments.stored, shape.S, {blocks, D, shape.G, PREPARED_UNITS});
  problem.unit_parameters = arguments.shared("unit_parameters", arguments.computed, shape.S, {shape.K, H});
  problem.initial = arguments.shared("initial", arguments.computed, shape.S, {shape.F, H});
  call.W_scale = take_scale(arguments, "W_scale", shape);
  call.R_scale = take_scale(arguments, "R_scale", shape);
  if (arguments.fault.empty() && arguments.stored == ffi::DataType::S8 && !(call.W_scale.data && call.R_scale.data) && H)
    return "int8 weights have no scales";
  return arguments.fault;
}

// Arguments xs, state, length, resets, W, b, R, unit parameters, initial, W_scale, R_scale; results states (F), last.
// Results that are not used have no elements.
static ffi::Error prepared(ffi::ThreadPool pool, Buffers& from, Buffers& to, const Attributes& attributes) {
  Prepared call = {};
  if (from.buffers.size() > 4) {
    from.computed = to.computed = from.buffers[1].element_type();
    from.stored = from.buffers[4].element_type();
  }
  const PreparedCode code = code_of(from.computed, from.stored, target_of(attributes.max_instruction_set));
  std::string fault = take_problem(from, attributes, code, call);
  const Shape& shape = call.problem.shape;
  const int64_t inputs = shape.C + shape.F + shape.K, H = shape.N * shape.D;
  if (fault.empty()) fault = fault_of(attributes, shape, inputs, shape.F + shape.C);
  RNNJAX_CHECK(fault.empty(), fault);
  call.problem.code = code_of(attributes, inputs);
  std::vector<void*> states;
  for (int64_t f = 0; f < shape.F; ++f) states.push_back(to.take("states", {shape.S, shape.B, shape.T, H}, true));
  call.states = states.data();
  call.last = to.take("last", {shape.S, shape.B, shape.F, H});
  RNNJAX_CHECK(to.fault.empty(), to.fault);
  RNNJAX_CHECK(from.next == from.buffers.size() && to.next == to.buffers.size(), "more buffers than expected");
  if (shape.S * shape.B * H == 0) return ffi::Error::Success();
  Team team = team_of(pool);
  return code(call, crew_of(team)) ? ffi::Error::Success() : out_of_memory();
}

}  // namespace rnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rnnjax_prepared, rnnjax::entry<rnnjax::prepared>, RNNJAX_BINDING);
#pragma GCC visibility pop
