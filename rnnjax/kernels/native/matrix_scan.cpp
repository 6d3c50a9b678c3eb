// The entry points of the matrix-state recurrence: buffers are checked against each other, then handed to the best code here.
#include "arguments.h"

namespace rnnjax {

static const MatrixScanCode* code_of(ffi::DataType type, int32_t max_instruction_set) {
  const MatrixScans& scans = target_of(max_instruction_set).matrix_scan;
  return type == ffi::DataType::F32 ? &scans.float32 : type == ffi::DataType::F64 ? &scans.float64 : nullptr;
}

// The arguments of both calls: sizes from decay, value and state; then every array. One without elements stands for none.
static MatrixScan take_problem(Buffers& from, bool reads_before) {
  MatrixScan call = {};
  const auto& given = from.buffers;
  if (given.size() < 10) return from.fault = "expected more arguments", call;
  const auto decay = given[0].dimensions(), value = given[2].dimensions(), state = given[6].dimensions();
  if (decay.size() != 4 || value.size() != 4 || state.size() != 4) return from.fault = "expected other ranks", call;
  call = {value[0], value[1], value[2], state[2], value[3], decay[3] == 1 ? 1 : state[2], reads_before};
  const Dimensions by_key = {call.B, call.T, call.N, call.K}, states = {call.B, call.N, call.K, call.V};
  call.decay = from.take("decay", {call.B, call.T, call.N, call.decays});
  call.key = from.take("key", by_key);
  call.value = from.take("value", {call.B, call.T, call.N, call.V});
  call.query = from.take("query", by_key);
  call.erase = from.take("erase", by_key, true);
  call.erase_key = from.take("erase_key", by_key, true);
  call.state = from.take("state", states);
  call.start = from.take("start", states, true);
  call.resets = static_cast<const uint8_t*>(from.take("resets", ffi::DataType::PRED, {call.B, call.T}, true));
  call.length = static_cast<const int32_t*>(from.take("length", ffi::DataType::S32, {call.B}, true));
  if (call.erase_key && !call.erase && from.fault.empty()) from.fault = "expected an erase with its key";
  return call;
}

// Runs a half, once all of its buffers have been taken.
template <class Call>
static ffi::Error checked_run(const Call& call, bool (*MatrixScanCode::*half)(const Call&, const Crew&),
                              const MatrixScanCode& code, const Buffers& from, const Buffers& to, ffi::ThreadPool pool) {
  RNNJAX_CHECK(from.fault.empty(), from.fault);
  RNNJAX_CHECK(to.fault.empty(), to.fault);
  RNNJAX_CHECK(from.next == from.buffers.size() && to.next == to.buffers.size(), "more buffers than expected");
  const MatrixScan& sizes = call.problem;
  if (sizes.B * sizes.N * sizes.K * sizes.V == 0) {
    for (const auto& buffer : to.buffers) std::fill_n(static_cast<char*>(buffer.untyped_data()), buffer.size_bytes(), 0);
    return ffi::Error::Success();
  }
  Team team = team_of(pool);
  return (code.*half)(call, crew_of(team)) ? ffi::Error::Success() : out_of_memory();
}

// What XLA calls: `call`, once its buffers are collected and have a dtype that there is code for.
template <ffi::Error (*call)(const MatrixScanCode&, bool, Buffers&, Buffers&, ffi::ThreadPool)>
static ffi::Error entry(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results, bool reads_before,
                        int32_t max_instruction_set) try {
  Buffers from, to;
  const std::string fault = collect(arguments, results, from, to);
  RNNJAX_CHECK(fault.empty(), fault);
  from.computed = to.computed = from.buffers[0].element_type();
  const MatrixScanCode* code = code_of(from.computed, max_instruction_set);
  RNNJAX_CHECK(code, "expected float32 or float64");
  return call(*code, reads_before, from, to, pool);
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

// Arguments decay, key, value, query, erase, erase_key, state, start, resets, length; results ys, last.
static ffi::Error forward(const MatrixScanCode& code, bool reads_before, Buffers& from, Buffers& to, ffi::ThreadPool pool) {
  MatrixScanForward call = {take_problem(from, reads_before)};
  const MatrixScan& sizes = call.problem;
  call.ys = to.take("ys", {sizes.B, sizes.T, sizes.N, sizes.V});
  call.last = to.take("last", {sizes.B, sizes.N, sizes.K, sizes.V});
  return checked_run(call, &MatrixScanCode::forward, code, from, to, pool);
}

// Arguments those of the forward half, dys, dlast; results the gradients of all arguments but resets and length, in
// their order. One that is not needed has no elements.
static ffi::Error backward(const MatrixScanCode& code, bool reads_before, Buffers& from, Buffers& to, ffi::ThreadPool pool) {
  MatrixScanBackward call = {take_problem(from, reads_before)};
  const MatrixScan& sizes = call.problem;
  const Dimensions by_key = {sizes.B, sizes.T, sizes.N, sizes.K}, by_value = {sizes.B, sizes.T, sizes.N, sizes.V};
  const Dimensions states = {sizes.B, sizes.N, sizes.K, sizes.V};
  call.dys = from.take("dys", by_value);
  call.dlast = from.take("dlast", states);
  call.ddecay = to.take("ddecay", {sizes.B, sizes.T, sizes.N, sizes.decays}, true);
  call.dkey = to.take("dkey", by_key, true);
  call.dvalue = to.take("dvalue", by_value, true);
  call.dquery = to.take("dquery", by_key, true);
  call.derase = to.take("derase", by_key, true);
  call.derase_key = to.take("derase_key", by_key, true);
  call.dstate = to.take("dstate", states, true);
  call.dstart = to.take("dstart", states, true);
  RNNJAX_CHECK((sizes.erase || !call.derase) && (sizes.erase_key || !call.derase_key),
               "expected no gradient of what is absent");
  return checked_run(call, &MatrixScanCode::backward, code, from, to, pool);
}

#define RNNJAX_MATRIX_SCAN_BINDING \
  ffi::Ffi::Bind()                 \
      .Ctx<ffi::ThreadPool>()      \
      .RemainingArgs()             \
      .RemainingRets()             \
      .Attr<bool>("reads_before")  \
      .Attr<int32_t>("max_instruction_set")

}  // namespace rnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rnnjax_matrix_scan, rnnjax::entry<rnnjax::forward>, RNNJAX_MATRIX_SCAN_BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(rnnjax_matrix_scan_backward, rnnjax::entry<rnnjax::backward>, RNNJAX_MATRIX_SCAN_BINDING);
#pragma GCC visibility pop
