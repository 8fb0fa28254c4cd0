// Sums of rows of computed numbers, whether these are many and short or few and long.
#pragma once

#include <cstdint>

#include "lanes.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "tasks.h"
#include "vector.h"

namespace jnn {

// So many numbers of a row are added one to another in the lanes; what they come to, part by part.
constexpr int64_t kPart = 16384;

// The sum of of(at, lanes), vectors, for n numbers.
template <class T, class Of>
inline T sum_of(int64_t n, const Of& of) {
  Vector<T> sums[kWays] = {};
  vectors<T>(n, [&](int64_t at, auto way, auto lanes) { sums[way] += of(at, lanes); });
  return total<T>(joined<T>(sums));
}

// y[row] is the sum of of(row * n + at, lanes), which is 0 outside of the lanes.
template <class T, class Of>
void sum_rows(Pool& pool, int64_t rows, int64_t n, T* y, const Of& of) {
  const Parts parts(n, kPart);
  const auto sum = [&](int64_t first, int64_t count) {
    return sum_of<T>(count, [&](int64_t at, auto lanes) { return of(first + at, lanes); });
  };
  if (parts.parts == 1) {
    return by_task(pool, rows, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) y[row] = sum(row * n, n);
    });
  }
  const Memory<T> sums = memory<T>(rows * parts.parts);
  by_task(pool, rows * parts.parts, kPart, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / parts.parts, part = i % parts.parts;
      sums[i] = sum(row * n + parts.begin(part), parts.size(part));
    }
  });
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = sums.get() + row * parts.parts;
    y[row] = sum_of<T>(parts.parts, [&](int64_t at, auto lanes) { return lanes.load(from + at); });
  }
}

}  // namespace jnn
