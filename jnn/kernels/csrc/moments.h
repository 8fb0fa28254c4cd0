// Means and variances in one pass over memory: in two over what is in the cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"
#include "vector.h"

namespace jnn {

// Numbers whose mean is taken before their deviations are, 16 KiB.
template <class T>
constexpr int64_t kChunk = 16384 / sizeof(T);

template <class T>
struct Statistics {
  T mean, variance;
};

// How many numbers there are, their mean, and the sum of their squared deviations from it: numbers, or vectors of them.
template <class V>
struct Moments {
  V count{}, mean{}, square{};

  void add(const Moments& other) {
    const V total = count + other.count, share = other.count / total, gap = other.mean - mean;
    mean += gap * share;
    square += other.square + gap * gap * (count * share);
    count = total;
  }
};

// Of n neighbours, kChunk at most; not `centered`, of their squares about 0.
template <class T>
inline Moments<T> moments_of_chunk(const T* x, int64_t n, bool centered) {
  Moments<T> found{T(n)};
  if (centered) {
    // Less one of the numbers, so that a mean far from 0 costs no digits.
    const Vector<T> pivot = broadcast(x[0]);
    Vector<T> sums[kWays] = {};
    vectors<T>(n, [&](int64_t at, auto way, auto lanes) { sums[way] += lanes.keep(lanes.load(x + at) - pivot); });
    found.mean = x[0] + total<T>(joined<T>(sums)) / T(n);
  }
  Vector<T> squares[kWays] = {};
  vectors<T>(n, [&](int64_t at, auto way, auto lanes) {
    const Vector<T> deviation = lanes.keep(lanes.load(x + at) - found.mean);
    squares[way] += deviation * deviation;
  });
  found.square = total<T>(joined<T>(squares));
  return found;
}

// Of `runs` rows of n neighbours, `pitch` apart.
template <class T>
Statistics<T> statistics(const T* x, int64_t runs, int64_t pitch, int64_t n, bool centered) {
  Moments<T> found;
  for (int64_t run = 0; run < runs; ++run)
    for (int64_t at = 0; at < n; at += kChunk<T>) {
      const Moments<T> more = moments_of_chunk(x + run * pitch + at, std::min(kChunk<T>, n - at), centered);
      run + at ? found.add(more) : void(found = more);
    }
  return {found.mean, found.square / found.count};
}

// Of n sets of `count` numbers each, of their means and sums of squared deviations.
template <class T>
Statistics<T> together(const T* means, const T* squares, int64_t n, T count) {
  T rest = 0, square = 0;
  for (int64_t i = 1; i < n; ++i) rest += means[i] - means[0];
  const T mean = means[0] + rest / T(n);
  for (int64_t i = 0; i < n; ++i) square += squares[i] + count * ((means[i] - mean) * (means[i] - mean));
  return {mean, square / (T(n) * count)};
}

// Of each of neighbouring columns of vectors, `rows` numbers `pitch` apart in each lane; not `centered`, of their squares about 0.
template <class T, int columns, class Lanes>
inline void moments_of_columns(const T* x, int64_t rows, int64_t pitch, const Lanes& lanes, Moments<Vector<T>> (&found)[columns],
                               bool centered = true) {
  Vector<T> sums[columns] = {}, squares[columns] = {};
  for (int64_t row = 1; centered && row < rows; ++row)
#pragma GCC unroll 4
    for (int i = 0; i < columns; ++i) sums[i] += lanes.load(x + row * pitch + i * kLanes<T>) - lanes.load(x + i * kLanes<T>);
#pragma GCC unroll 4
  for (int i = 0; centered && i < columns; ++i) sums[i] = sums[i] / T(rows) + lanes.load(x + i * kLanes<T>);
  for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int i = 0; i < columns; ++i) {
      const Vector<T> deviation = lanes.load(x + row * pitch + i * kLanes<T>) - sums[i];
      squares[i] += deviation * deviation;
    }
  for (int i = 0; i < columns; ++i) found[i] = {broadcast(T(rows)), sums[i], squares[i]};
}

}  // namespace jnn
