// Sums by rows of penalties of the differences of two arrays, and their gradients; products of rows.

#include <cstdint>
#include <string_view>

#include "buffers.h"
#include "lanes.h"
#include "penalties.h"
#include "sums.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

ffi::Error differences(Pool pool, std::string_view kind, double limit, double shift, In x, In y, Out sums) {
  const int64_t rows = sums->element_count(), n = x.element_count() / rows;
  return by_kind(x.element_type(), kind, limit, [&](auto zero, auto penalty) {
    using T = decltype(zero);
    const T *a = data<T>(x), *b = data<T>(y), more = shift;
    sum_rows(pool, rows, n, data<T>(sums),
             [&](int64_t at, auto lanes) { return lanes.keep(penalty.value(lanes.load(a + at) - lanes.load(b + at) + more)); });
  });
}

// The gradients by those of the two that are wanted.
ffi::Error differences_backward(Pool pool, std::string_view kind, double limit, double shift, bool by_x, bool by_y, In g, In x, In y,
                                ffi::RemainingRets slopes) {
  const int64_t rows = g.element_count(), n = x.element_count() / rows;
  return by_kind(x.element_type(), kind, limit, [&](auto zero, auto penalty) {
    using T = decltype(zero);
    const auto result = [&](size_t i) { return static_cast<T*>((*slopes.get<ffi::AnyBuffer>(i))->untyped_data()); };
    T *of_x = by_x ? result(0) : nullptr, *of_y = by_y ? result(slopes.size() - 1) : nullptr;
    const bool past = past_cache<T>(slopes.size() * x.element_count());
    by_run(pool, rows, n, [&](int64_t row, int64_t begin, int64_t count) {
      const int64_t first = row * n + begin;
      const T *a = data<T>(x) + first, *b = data<T>(y) + first, more = shift, factor = data<T>(g)[row];
      vectors<T>(count, [&](int64_t at, auto, auto lanes) {
        const Vector<T> slope = factor * penalty.slope(lanes.load(a + at) - lanes.load(b + at) + more);
        if (by_x) lanes.store(of_x + first + at, slope, past);
        if (by_y) lanes.store(of_y + first + at, -slope, past);
      });
    });
  });
}

// Of each row x y, x x and y y.
ffi::Error products(Pool pool, In x, In y, Out both, Out first, Out second) {
  const int64_t rows = both->element_count(), n = x.element_count() / rows;
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    by_task(pool, rows, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T *from = data<T>(x) + row * n, *other = data<T>(y) + row * n;
        Vector<T> ab[kWays] = {}, aa[kWays] = {}, bb[kWays] = {};
        vectors<T>(n, [&](int64_t at, auto way, auto lanes) {
          const Vector<T> a = lanes.load(from + at), b = lanes.load(other + at);
          ab[way] += a * b;
          aa[way] += a * a;
          bb[way] += b * b;
        });
        data<T>(both)[row] = total<T>(joined<T>(ab));
        data<T>(first)[row] = total<T>(joined<T>(aa));
        data<T>(second)[row] = total<T>(joined<T>(bb));
      }
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_differences, differences, of_penalty().Arg<In>().Arg<In>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_differences_backward, differences_backward,
                              of_penalty().Attr<bool>("by_x").Attr<bool>("by_y").Arg<In>().Arg<In>().Arg<In>().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_products, products, ffi::Ffi::Bind().Ctx<Pool>().Arg<In>().Arg<In>().Ret<In>().Ret<In>().Ret<In>());

}  // namespace jnn
