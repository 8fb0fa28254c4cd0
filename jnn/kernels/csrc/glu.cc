// Gated linear units: the first half of each block of numbers times the sigmoid of the second, and the gradient.

#include <cstdint>

#include "buffers.h"
#include "functions.h"
#include "lanes.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

ffi::Error forward(Pool pool, int64_t half, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t size = y->element_count();
    const bool past = past_cache<T>(size);
    by_run(pool, size / half, half, [&](int64_t block, int64_t begin, int64_t count) {
      const T *a = data<T>(x) + block * 2 * half + begin, *b = a + half;
      T* to = data<T>(y) + block * half + begin;
      vectors<T>(count,
                 [&](int64_t at, auto, auto lanes) { lanes.store(to + at, lanes.load(a + at) * sigmoid<T>(lanes.load(b + at)), past); });
    });
  });
}

ffi::Error backward(Pool pool, int64_t half, ffi::AnyBuffer g, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> slopes) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t size = g.element_count();
    const bool past = past_cache<T>(2 * size);
    by_run(pool, size / half, half, [&](int64_t block, int64_t begin, int64_t count) {
      const int64_t first = block * 2 * half + begin;
      const T *slope = data<T>(g) + block * half + begin, *a = data<T>(x) + first, *b = a + half;
      T *by_a = data<T>(slopes) + first, *by_b = by_a + half;
      vectors<T>(count, [&](int64_t at, auto, auto lanes) {
        const Vector<T> gate = sigmoid<T>(lanes.load(b + at)), open = lanes.load(slope + at) * gate;
        lanes.store(by_a + at, open, past);
        lanes.store(by_b + at, open * lanes.load(a + at) * (T{1} - gate), past);
      });
    });
  });
}

auto bound() { return ffi::Ffi::Bind().Ctx<Pool>().Attr<int64_t>("half").Arg<ffi::AnyBuffer>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_glu, forward, bound().Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_glu_backward, backward, bound().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

}  // namespace jnn
