// The kernel of prepared weights for one instruction set: compiled once for each, as target.cpp is.
#include "prepared_step.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

template <class Stored, class E>
bool prepared(const Prepared& call, const Crew& crew) {
  return PreparedPass<Stored, E>(call, crew).run();
}
template <class E>
constexpr PreparedKernel kernel = {prepared<E, E>, prepared<Bfloat16, E>, prepared<int8_t, E>};

extern const PreparedKernels prepared_kernels;
const PreparedKernels prepared_kernels = {kernel<float>, kernel<double>};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
