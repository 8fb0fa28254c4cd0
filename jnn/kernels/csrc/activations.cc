// Activations and their gradients: log(1 + exp(x)), and x / (1 + exp(-x)).

#include <cstdint>

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

// to[i] = function(from[i]...), of `size` numbers.
template <class T, class Function, class... From>
void map(Pool& pool, int64_t size, T* to, const Function& function, const From*... from) {
  const bool past = past_cache<T>(size);
  by_run(pool, 1, size, [&](int64_t, int64_t begin, int64_t count) {
    vectors<T>(count,
               [&](int64_t at, auto, auto lanes) { lanes.store(to + begin + at, function(lanes.load(from + begin + at)...), past); });
  });
}

template <class T>
Vector<T> softplus(Vector<T> x) {
  return at_least<T>(x, 0) + log_of_more<T>(exp<T>(-absolute<T>(x)));
}

ffi::Error softplus_forward(Pool pool, double beta, double threshold, In x, Out y) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const T factor = beta, most = threshold, inverse = T{1} / factor;
    const auto value = [=](Vector<T> x) {
      const Vector<T> z = x * factor;
      return select<T>(z > most, x, softplus<T>(z) * inverse);
    };
    map(pool, x.element_count(), data<T>(y), value, data<T>(x));
  });
}

ffi::Error softplus_backward(Pool pool, double beta, double threshold, In g, In x, Out slopes) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const T factor = beta, most = threshold;
    const auto slope = [=](Vector<T> g, Vector<T> x) {
      const Vector<T> z = x * factor;
      return select<T>(z > most, g, g * sigmoid<T>(z));
    };
    map(pool, x.element_count(), data<T>(slopes), slope, data<T>(g), data<T>(x));
  });
}

ffi::Error silu_forward(Pool pool, In x, Out y) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    map(pool, x.element_count(), data<T>(y), [](Vector<T> x) { return x * sigmoid<T>(x); }, data<T>(x));
  });
}

ffi::Error silu_backward(Pool pool, In g, In x, Out slopes) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto slope = [](Vector<T> g, Vector<T> x) {
      const Vector<T> gate = sigmoid<T>(x);
      return g * (gate + gate * (T{1} - gate) * x);
    };
    map(pool, x.element_count(), data<T>(slopes), slope, data<T>(g), data<T>(x));
  });
}

auto bound() { return ffi::Ffi::Bind().Ctx<Pool>(); }
auto bound_scale() { return bound().Attr<double>("beta").Attr<double>("threshold"); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_softplus, softplus_forward, bound_scale().Arg<In>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_softplus_backward, softplus_backward, bound_scale().Arg<In>().Arg<In>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_silu, silu_forward, bound().Arg<In>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_silu_backward, silu_backward, bound().Arg<In>().Arg<In>().Ret<In>());

}  // namespace jnn
