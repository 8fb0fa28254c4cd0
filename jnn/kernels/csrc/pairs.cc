// Sums of penalties of the differences of all pairs of rows of a matrix, or the greatest differences, and the gradient.

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

// Calls run with a zero of the type and the penalty, of which pairs have more kinds.
template <class Run>
ffi::Error by_kind_of_pairs(ffi::DataType type, std::string_view kind, double limit, const Run& run) {
  if (kind == "count") return by_type(type, [&](auto zero) { run(zero, Count<decltype(zero)>{}); });
  if (kind == "greatest") return by_type(type, [&](auto zero) { run(zero, Greatest<decltype(zero)>{}); });
  return by_kind(type, kind, limit, run);
}

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

// Of rows i to i + rows with all that come after them.
template <class T, int rows, class Penalty>
void compare(const Sides<T>& sides, const Penalty& penalty, int64_t i, T* sums) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t p = (i + 1) / lanes; p < sides.panels; ++p) {
    Vector<T> found[rows] = {};
    for (int64_t k = 0; k < sides.columns; ++k) {
      const Vector<T> others = load(sides.column(p, k));
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) found[r] = together<Penalty, T>(found[r], penalty.value(broadcast(sides.row(i + r)[k]) - others));
    }
    const int64_t first = p * lanes, end = std::min(lanes, sides.rows - first);
    for (int r = 0; r < rows; ++r)
      store_masked(sums + sides.before(i + r) + first, found[r], between(std::max<int64_t>(0, i + r + 1 - first), end), 1);
  }
}

ffi::Error forward(Pool pool, std::string_view kind, double limit, double, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> sums) {
  const int64_t rows = x.dimensions()[0], columns = x.dimensions()[1];
  return by_kind_of_pairs(x.element_type(), kind, limit, [&](auto zero, auto penalty) {
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

// What belongs to the pairs of one row with all: the slopes of their sums, the sums themselves of a greatest difference, and `other`, which
// has all bits set but for the row itself and rows that are missing.
template <class T>
struct Pairs {
  Memory<T> factors, greatest, other;
  explicit Pairs(int64_t size) : factors(zeros<T>(size)), greatest(memory<T>(size)), other(memory<T>(size)) {}
  void keep(int64_t j, bool kept) const { std::memset(other.get() + j, kept ? 0xff : 0, sizeof(T)); }
};

template <class T>
void find_greatest(const Sides<T>& sides, int64_t i, T* greatest) {
  for (int64_t p = 0; p < sides.panels; ++p) {
    Vector<T> found{};
    for (int64_t k = 0; k < sides.columns; ++k)
      found = together<Greatest<T>, T>(found, absolute<T>(broadcast(sides.row(i)[k]) - load(sides.column(p, k))));
    store(greatest + p * kLanes<T>, found);
  }
}

// The gradient by columns k to k + columns of row i.
template <class T, int columns, class Penalty>
void slopes_of(const Sides<T>& sides, const Penalty& penalty, int64_t i, int64_t k, const Pairs<T>& pairs, T* to) {
  Vector<T> found[columns] = {};
  for (int64_t p = 0; p < sides.panels; ++p) {
    const Vector<T> factor = load(pairs.factors.get() + p * kLanes<T>), kept = load(pairs.other.get() + p * kLanes<T>);
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) {
      const Vector<T> difference = broadcast(sides.row(i)[k + c]) - load(sides.column(p, k + c));
      const auto own = (Vector<T>)(bits<T>(difference) & bits<T>(kept));
      if constexpr (is_greatest<Penalty, T>) {
        const Vector<T> greatest = load(pairs.greatest.get() + p * kLanes<T>);
        found[c] += factor * penalty.slope(own, (Vector<T>)(bits<T>(greatest) & bits<T>(kept)));
      } else {
        found[c] += factor * penalty.slope(own);
      }
    }
  }
  for (int c = 0; c < columns; ++c) to[k + c] = total<T>(found[c]);
}

ffi::Error backward(Pool pool, std::string_view kind, double limit, double, ffi::AnyBuffer g, ffi::AnyBuffer x,
                    ffi::Result<ffi::AnyBuffer> slopes) {
  const int64_t rows = x.dimensions()[0], columns = x.dimensions()[1];
  return by_kind_of_pairs(x.element_type(), kind, limit, [&](auto zero, auto penalty) {
    using T = decltype(zero);
    const Sides<T> sides(pool, rows, columns, data<T>(x));
    const int64_t size = sides.panels * sides.lanes;
    by_task(pool, rows, size * columns, 1, [&](int64_t begin, int64_t end) {
      const Pairs<T> pairs(size);
      for (int64_t j = 0; j < size; ++j) pairs.keep(j, j < rows);
      T* factors = pairs.factors.get();
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < i; ++j) factors[j] = data<T>(g)[sides.before(j) + i];
        std::copy(data<T>(g) + sides.before(i) + i + 1, data<T>(g) + sides.before(i) + rows, factors + i + 1);
        factors[i] = 0;
        pairs.keep(i, false);
        if (is_greatest<decltype(penalty), T>) find_greatest<T>(sides, i, pairs.greatest.get());
        T* to = data<T>(slopes) + i * columns;
        int64_t k = 0;
        for (; k + kTogether <= columns; k += kTogether) slopes_of<T, kTogether>(sides, penalty, i, k, pairs, to);
        for (; k < columns; ++k) slopes_of<T, 1>(sides, penalty, i, k, pairs, to);
        pairs.keep(i, true);
      }
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_pairs, forward, of_penalty().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_pairs_backward, backward, of_penalty().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

}  // namespace jnn
