// log(1 + exp(x)) and its gradient.

#include <cstdint>
#include <limits>

#include "buffers.h"
#include "functions.h"
#include "lanes.h"
#include "parallel.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

template <class T>
Vector<T> softplus(Vector<T> x) {
  return at_least<T>(x, 0) + log_of_more<T>(exp<T>(-absolute<T>(x)));
}

ffi::Error forward(Pool pool, double beta, double threshold, In x, Out y) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const T factor = beta, most = threshold, inverse = T{1} / factor;
    const bool past = past_cache<T>(x.element_count());
    by_run(pool, 1, x.element_count(), [&](int64_t, int64_t begin, int64_t count) {
      const T* from = data<T>(x) + begin;
      T* to = data<T>(y) + begin;
      vectors<T>(count, [&](int64_t at, auto, auto lanes) {
        const Vector<T> value = lanes.load(from + at), z = value * factor;
        lanes.store(to + at, select<T>(z > most, value, softplus<T>(z) * inverse), past);
      });
    });
  });
}

ffi::Error backward(Pool pool, double beta, double threshold, In g, In x, Out slopes) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const T factor = beta, most = threshold;
    const bool past = past_cache<T>(x.element_count());
    by_run(pool, 1, x.element_count(), [&](int64_t, int64_t begin, int64_t count) {
      const T *slope = data<T>(g) + begin, *from = data<T>(x) + begin;
      T* to = data<T>(slopes) + begin;
      vectors<T>(count, [&](int64_t at, auto, auto lanes) {
        const Vector<T> z = lanes.load(from + at) * factor, given = lanes.load(slope + at);
        lanes.store(to + at, select<T>(z > most, given, given * sigmoid<T>(z)), past);
      });
    });
  });
}

auto bound() { return ffi::Ffi::Bind().Ctx<Pool>().Attr<double>("beta").Attr<double>("threshold"); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_softplus, forward, bound().Arg<In>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_softplus_backward, backward, bound().Arg<In>().Arg<In>().Ret<In>());

}  // namespace jnn
