// Sums of rows, whether these are many and short or few and long.

#include <algorithm>
#include <cstdint>

#include "buffers.h"
#include "lanes.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

// So many numbers of a row are added one to another in the lanes; what they come to, part by part.
constexpr int64_t kPart = 16384;

template <class T>
T sum_of(int64_t n, const T* x) {
  Vector<T> sums[kWays] = {};
  vectors<T>(n, [&](int64_t at, auto way, auto lanes) { sums[way] += lanes.load(x + at); });
  return total<T>(joined<T>(sums));
}

template <class T>
void sum_rows(Pool& pool, int64_t rows, int64_t n, const T* x, T* y) {
  by_task(pool, rows, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) y[row] = sum_of(n, x + row * n);
  });
}

template <class T>
void sum_parts(Pool& pool, int64_t rows, int64_t n, const T* x, T* y) {
  const Parts parts(n, kPart);
  const Memory<T> sums = memory<T>(rows * parts.parts);
  by_task(pool, rows * parts.parts, kPart, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / parts.parts, part = i % parts.parts;
      sums[i] = sum_of(parts.size(part), x + row * n + parts.begin(part));
    }
  });
  for (int64_t row = 0; row < rows; ++row) y[row] = sum_of(parts.parts, sums.get() + row * parts.parts);
}

ffi::Error sum(Pool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y) {
  const int64_t rows = y->element_count(), n = x.element_count() / rows;
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    (n > kPart ? sum_parts<T> : sum_rows<T>)(pool, rows, n, data<T>(x), data<T>(y));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_sum, sum, ffi::Ffi::Bind().Ctx<Pool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

}  // namespace jnn
