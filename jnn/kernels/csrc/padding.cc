// Arrays extended by what they hold themselves: each axis reads elements of its own.

#include <algorithm>
#include <cstdint>

#include "buffers.h"
#include "lanes.h"
#include "tasks.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

using Span = ffi::Span<const int64_t>;

// Where a row's elements come from: neighbours are copied at once, from the `begin`-th to the `end`-th of the longest run of them.
struct Columns {
  Span from;
  int64_t begin = 0, end = 0;

  explicit Columns(Span from) : from(from) {
    const int64_t count = from.size();
    for (int64_t first = 0, next; first < count; first = next) {
      for (next = first + 1; next < count && from[next] == from[next - 1] + 1;) ++next;
      if (next - first > end - begin) begin = first, end = next;
    }
  }

  template <class T>
  void copy(const T* row, T* to) const {
    for (int64_t i = 0; i < begin; ++i) to[i] = row[from[i]];
    const T* near = row + from[begin] - begin;
    int64_t i = begin;
    for (; i + kLanes<T> <= end; i += kLanes<T>) store(to + i, load(near + i));
    if (i < end) store_masked(to + i, load_masked(near + i, between(0, end - i), 1), between(0, end - i), 1);
    for (i = end; i < static_cast<int64_t>(from.size()); ++i) to[i] = row[from[i]];
  }
};

// x (N, *in) to (N, *out), of three axes each.
ffi::Error extended(Pool pool, Span depths, Span rows, Span columns, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> out) {
  const auto in = x.dimensions();
  const int64_t lines = depths.size() * rows.size(), width = columns.size();
  if (!out->element_count()) return ffi::Error::Success();
  const Columns row(columns);
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    by_task(pool, in[0] * lines, width, 1, [&](int64_t begin, int64_t end) {
      const int64_t height = rows.size();
      int64_t n = begin / lines, z = begin / height % depths.size(), y = begin % height;
      for (int64_t line = begin; line < end; ++line) {
        row.copy(data<T>(x) + ((n * in[1] + depths[z]) * in[2] + rows[y]) * in[3], data<T>(out) + line * width);
        if (++y == height) y = 0, ++z;
        if (z == static_cast<int64_t>(depths.size())) z = 0, ++n;
      }
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jnn_extended, extended,
    ffi::Ffi::Bind().Ctx<Pool>().Attr<Span>("depths").Attr<Span>("rows").Attr<Span>("columns").Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

}  // namespace jnn
