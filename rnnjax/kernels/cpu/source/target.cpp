// The kernel for one instruction set: compiled once for each, with that set's flags and a namespace of its own.
#include "backward.h"
#include "forward.h"

namespace rnnjax {
namespace RNNJAX_TARGET {

template <class E>
bool forward(const Forward& call, const Crew& crew) {
  return ForwardPass<E>(call, crew).run();
}
template <class E>
bool backward(const Backward& call, const Crew& crew) {
  return BackwardPass<E>(call, crew).run();
}

extern const Target target;
const Target target = {forward<float>, forward<double>, backward<float>, backward<double>};

}  // namespace RNNJAX_TARGET
}  // namespace rnnjax
