// Sums of penalties of the differences of all pairs of rows of a matrix, and the gradient.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "buffers.h"
#include "lanes.h"
#include "matrices.h"
#include "memory.h"
#include "parallel.h"
#include "penalties.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

// So many rows are compared with others, or columns are summed, at a time.
constexpr int kTogether = 4;

// The rows of a matrix, as many as lanes side by side: column k of panel p is at (p * columns + k) * lanes; rows that are missing are 0.
template <class T>
struct Sides {
  static constexpr int64_t lanes = kLanes<T>;
  int64_t rows, columns, panels;
  const T* matrix;
  Memory<T> numbers;

  Sides(Pool& pool, int64_t rows, int64_t columns, const T* matrix)
      : rows(rows), columns(columns), panels((rows + lanes - 1) / lanes), matrix(matrix), numbers(memory<T>(panels * lanes * columns)) {
    by_task(pool, panels, lanes * columns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        in_columns(row(p * lanes), columns, std::min(lanes, this->rows - p * lanes), columns, numbers.get() + p * lanes * columns, lanes);
    });
  }

  const T* row(int64_t i) const { return matrix + i * columns; }
  const T* column(int64_t panel, int64_t k) const { return numbers.get() + (panel * columns + k) * lanes; }
  // Pairs i < j are in the order of i and then of j: pair (i, j) is before(i) + j.
  int64_t before(int64_t i) const { return i * (2 * rows - i - 1) / 2 - i - 1; }
};

// Of rows i to i + together with all that come after them.
template <class T, int together, class Penalty>
void compare(const Sides<T>& sides, const Penalty& penalty, int64_t i, T* sums) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t p = (i + 1) / lanes; p < sides.panels; ++p) {
    Vector<T> found[together] = {};
    for (int64_t k = 0; k < sides.columns; ++k) {
      const Vector<T> others = load(sides.column(p, k));
#pragma GCC unroll 4
      for (int r = 0; r < together; ++r) found[r] += penalty.value(broadcast(sides.row(i + r)[k]) - others);
    }
    const int64_t first = p * lanes, end = std::min(lanes, sides.rows - first);
    for (int r = 0; r < together; ++r)
      store_masked(sums + sides.before(i + r) + first, found[r], between(std::max<int64_t>(0, i + r + 1 - first), end), 1);
  }
}

ffi::Error forward(Pool pool, std::string_view kind, double limit, double, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> sums) {
  const int64_t rows = x.dimensions()[0], columns = x.dimensions()[1];
  return by_kind(x.element_type(), kind, limit, [&](auto zero, auto penalty) {
    using T = decltype(zero);
    const Sides<T> sides(pool, rows, columns, data<T>(x));
    by_task(pool, (rows + kTogether - 1) / kTogether, kTogether * rows * columns / 2 + 1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t i = block * kTogether, last = std::min(rows, i + kTogether);
        if (last - i == kTogether) {
          compare<T, kTogether>(sides, penalty, i, data<T>(sums));
        } else {
          for (int64_t r = i; r < last; ++r) compare<T, 1>(sides, penalty, r, data<T>(sums));
        }
      }
    });
  });
}

// The gradient by columns k to k + together of row i, of whose pairs `factors` are the slopes; `other` has all bits set, but for the row
// itself and rows that are missing.
template <class T, int together, class Penalty>
void slopes_of(const Sides<T>& sides, const Penalty& penalty, int64_t i, int64_t k, const T* factors, const T* other, T* to) {
  Vector<T> found[together] = {};
  for (int64_t p = 0; p < sides.panels; ++p) {
    const Vector<T> factor = load(factors + p * kLanes<T>), kept = load(other + p * kLanes<T>);
#pragma GCC unroll 4
    for (int c = 0; c < together; ++c) {
      const Vector<T> difference = broadcast(sides.row(i)[k + c]) - load(sides.column(p, k + c));
      found[c] += factor * penalty.slope((Vector<T>)(bits<T>(difference) & bits<T>(kept)));
    }
  }
  for (int c = 0; c < together; ++c) to[k + c] = total<T>(found[c]);
}

ffi::Error backward(Pool pool, std::string_view kind, double limit, double, ffi::AnyBuffer g, ffi::AnyBuffer x,
                    ffi::Result<ffi::AnyBuffer> slopes) {
  const int64_t rows = x.dimensions()[0], columns = x.dimensions()[1];
  return by_kind(x.element_type(), kind, limit, [&](auto zero, auto penalty) {
    using T = decltype(zero);
    const Sides<T> sides(pool, rows, columns, data<T>(x));
    const int64_t size = sides.panels * sides.lanes;
    by_task(pool, rows, size * columns, 1, [&](int64_t begin, int64_t end) {
      const Memory<T> factors = memory<T>(size);
      const Memory<T> other = memory<T>(size);
      const auto keep = [&](int64_t j, bool kept) { std::memset(other.get() + j, kept ? 0xff : 0, sizeof(T)); };
      for (int64_t j = 0; j < size; ++j) keep(j, j < rows);
      std::fill_n(factors.get(), size, T{0});
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < i; ++j) factors[j] = data<T>(g)[sides.before(j) + i];
        std::copy(data<T>(g) + sides.before(i) + i + 1, data<T>(g) + sides.before(i) + rows, factors.get() + i + 1);
        factors[i] = 0;
        keep(i, false);
        T* to = data<T>(slopes) + i * columns;
        int64_t k = 0;
        for (; k + kTogether <= columns; k += kTogether) slopes_of<T, kTogether>(sides, penalty, i, k, factors.get(), other.get(), to);
        for (; k < columns; ++k) slopes_of<T, 1>(sides, penalty, i, k, factors.get(), other.get(), to);
        keep(i, true);
      }
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_pairs, forward, of_penalty().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_pairs_backward, backward, of_penalty().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

}  // namespace jnn
