// The entry point of the linear recurrence: buffers are checked against each other, then handed to the best code here.
#include "host.h"

namespace rnnjax {

static LinearScanCode code_of(ffi::DataType type, const Target& target) {
  switch (type) {
    case ffi::DataType::F32: return target.linear_scan.float32;
    case ffi::DataType::F64: return target.linear_scan.float64;
    case ffi::DataType::C64: return target.linear_scan.complex64;
    case ffi::DataType::C128: return target.linear_scan.complex128;
    default: return nullptr;
  }
}

static ffi::Error linear_scan(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer initial,
                              ffi::Result<ffi::AnyBuffer> h, bool reverse, bool late, int32_t max_instruction_set) try {
  const auto sizes = b.dimensions();
  const ffi::DataType type = b.element_type();
  const LinearScanCode code = code_of(type, target_of(max_instruction_set));
  RNNJAX_CHECK(code, "expected float32, float64, complex64 or complex128");
  RNNJAX_CHECK(sizes.size() == 3, "expected b of rank 3, got " + described(type, {sizes.begin(), sizes.end()}));
  const int64_t B = sizes[0], T = sizes[1], H = sizes[2];
  const bool shared = a.dimensions().size() == 3 && a.dimensions()[0] == 1;
  std::string fault = misfit("a", a, type, {shared ? 1 : B, T, H});
  if (fault.empty()) fault = misfit("initial", initial, type, {B, H});
  if (fault.empty()) fault = misfit("h", *h, type, {B, T, H});
  RNNJAX_CHECK(fault.empty(), fault);
  if (B * T * H == 0) return ffi::Error::Success();
  advise_huge(h->untyped_data(), h->size_bytes());
  Team team = team_of(pool);
  code({B, T, H, shared, reverse, late, a.untyped_data(), b.untyped_data(), initial.untyped_data(), h->untyped_data()},
       crew_of(team));
  return ffi::Error::Success();
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

}  // namespace rnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rnnjax_linear_scan, rnnjax::linear_scan,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("late")
                                  .Attr<int32_t>("max_instruction_set"));
#pragma GCC visibility pop
