// Sums and products of rows of any width.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vector.h"

namespace jnn {

template <class T>
struct FourOf {
  typedef T type __attribute__((vector_size(4 * sizeof(T))));
};
template <class T>
using Four = typename FourOf<T>::type;

template <class V, class T>
inline V read(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// Calls run(V{}, i) for vectors and at last numbers V that cover `width` numbers, from i on.
template <class T, class Run>
inline void by_vectors(int64_t width, const Run& run) {
  int64_t i = 0;
  for (; i + kLanes<T> <= width; i += kLanes<T>) run(Vector<T>{}, i);
  for (; i + 4 <= width; i += 4) run(Four<T>{}, i);
  for (; i < width; ++i) run(T{}, i);
}

// to += weight * from
template <class T>
inline void add(int64_t width, T weight, const T* from, T* to) {
  by_vectors<T>(width, [=](auto zero, int64_t i) {
    using V = decltype(zero);
    const V sum = read<V>(to + i) + weight * read<V>(from + i);
    std::memcpy(to + i, &sum, sizeof sum);
  });
}

template <class T>
inline T dot(int64_t width, const T* a, const T* b) {
  Vector<T> sums{};
  T sum{};
  by_vectors<T>(width, [&](auto zero, int64_t i) {
    using V = decltype(zero);
    const V both = read<V>(a + i) * read<V>(b + i);
    if constexpr (std::is_same_v<V, Vector<T>>) sums += both;
    else if constexpr (std::is_same_v<V, T>) sum += both;
    else sum += (both[0] + both[1]) + (both[2] + both[3]);
  });
  return sum + total<T>(sums);
}

}  // namespace jnn
