// The kernel for one instruction set: compiled once for each, with that set's flags and a namespace of its own.
#include "backward_step.h"
#include "forward_step.h"
#include "linear_scan.h"
#include "matrix_scan_backward.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

template <class Stored>
bool forward(const Forward& call, const Crew& crew) {
  return ForwardPass<Stored>(call, crew).run();
}
template <class Stored>
bool backward(const Backward& call, const Crew& crew) {
  return BackwardPass<Stored>(call, crew).run();
}
template <class Stored>
constexpr Kernel kernel = {forward<Stored>, backward<Stored>};
template <class E>
constexpr MatrixScanCode matrix_scan = {matrix_scan_forward<E>, matrix_scan_backward<E>};

extern const PreparedKernels prepared_kernels;  // in prepared_target.cpp
extern const Target target;
#if RNNJAX_PAIRS
const Target target = {{}, {}, kernel<Bfloat16>, {}, {}, nullptr};  // the others are what they are without pairs
#else
const Target target = {kernel<float>,
                       kernel<double>,
                       kernel<Bfloat16>,
                       {linear_scan<float, 1>, linear_scan<double, 1>, linear_scan<float, 2>, linear_scan<double, 2>},
                       {matrix_scan<float>, matrix_scan<double>},
                       &prepared_kernels};
#endif

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
