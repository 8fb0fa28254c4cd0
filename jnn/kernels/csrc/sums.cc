// Sums of rows.

#include "sums.h"

#include <cstdint>

#include "buffers.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

ffi::Error sum(Pool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y) {
  const int64_t rows = y->element_count(), n = x.element_count() / rows;
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = data<T>(x);
    sum_rows(pool, rows, n, data<T>(y), [&](int64_t at, auto lanes) { return lanes.load(from + at); });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_sum, sum, ffi::Ffi::Bind().Ctx<Pool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

}  // namespace jnn
