// The greatest of vectors, lane by lane, with NaN and with where it stands.
#pragma once

#include <cstdint>
#include <utility>

#include "functions.h"
#include "lanes.h"
#include "vector.h"

namespace jnn {

// Lane i is that of i ^ half.
template <int half, class V, size_t... i>
inline V exchanged_of(V v, std::index_sequence<i...>) {
  return __builtin_shufflevector(v, v, (i ^ half)...);
}

// The greatest so far, the first of equal ones, and where it stands; NaN, the last one, once there is any.
template <class T, bool placed = true>
struct Greatest {
  Vector<T> value;
  Integers<T> place;

  Greatest() = default;
  Greatest(Vector<T> value, Integers<T> place) : value(value), place(place) {}

  void see(Vector<T> other, Integers<T> there) {
    const Integers<T> better = (other > value) | (other != other);
    value = select<T>(better, other, value);
    place = better ? there : place;
  }
  void see(const Greatest& other) { see(other.value, other.place); }

  // `value` is read after this.
  void settle() {}

  // The greater of two, wherever each stands.
  void join(const Greatest& other) {
    const Integers<T> before = other.place < place, mine = value == value, others = other.value == other.value;
    const Integers<T> better = (other.value > value) | ((other.value == value) & before) | (~others & (mine | ~before));
    value = select<T>(better, other.value, value);
    place = better ? other.place : place;
  }

  // All lanes into the first.
  template <int half = kLanes<T> / 2>
  void join_lanes() {
    constexpr auto lanes = std::make_index_sequence<kLanes<T>>();
    join({exchanged_of<half>(value, lanes), exchanged_of<half>(place, lanes)});
    if constexpr (half > 1) join_lanes<half / 2>();
  }
};

// The value alone: NaN is kept beside the others, so that none waits for more than a maximum.
template <class T>
struct Greatest<T, false> {
  Vector<T> value, nan;

  Greatest() = default;
  Greatest(Vector<T> value, Integers<T>) : value(value), nan(value) {}

  void see(Vector<T> other, Integers<T>) {
    value = greater<T>(other, value);
    nan = select<T>(other != other, other, nan);
  }

  void see(const Greatest& settled) { see(settled.value, Integers<T>{}); }

  void settle() { nan = value = select<T>(nan == nan, value, nan); }

  void join(const Greatest& other) {
    value = greater<T>(other.value, value);
    nan = select<T>(other.nan == other.nan, nan, other.nan);
  }

  void join_lanes() {
    if (any<T>(nan != nan))
      for (int i = 0; i < kLanes<T>; ++i)
        if (nan[i] != nan[i]) value = broadcast(nan[i]);
    fold();
  }

 private:
  template <int half = kLanes<T> / 2>
  void fold() {
    value = greater<T>(exchanged_of<half>(value, std::make_index_sequence<kLanes<T>>()), value);
    if constexpr (half > 1) fold<half / 2>();
  }
};

// The value alone, where none is NaN.
template <class T>
struct GreatestOrdered {
  Vector<T> value;

  GreatestOrdered() = default;
  GreatestOrdered(Vector<T> value, Integers<T>) : value(value) {}
  void see(Vector<T> other, Integers<T>) { value = greater<T>(other, value); }
  void see(const GreatestOrdered& other) { value = greater<T>(other.value, value); }
  void settle() {}
};

template <class T>
bool any_nan(const T* row, int64_t size) {
  Integers<T> unordered{};
  vectors<T>(size, [&](int64_t at, auto, auto lanes) {
    const Vector<T> v = lanes.load(row + at);
    unordered |= v != v;
  });
  return any<T>(unordered);
}

// Those of two vectors in lanes `half` apart: of a where that bit of the lane is 0, else of b.
template <int half, class T, size_t... i>
inline Vector<T> joined_halves(Vector<T> a, Vector<T> b, std::index_sequence<i...>) {
  return greater<T>(__builtin_shufflevector(a, b, (i & half ? kLanes<T> + (i ^ half) : i)...),
                    __builtin_shufflevector(a, b, (i & half ? kLanes<T> + i : i ^ half)...));
}

// The greatest lane of each of as many vectors as lanes, of which none is NaN.
template <class T, int half = kLanes<T> / 2>
inline Vector<T> greatest_lanes(Vector<T> (&v)[kLanes<T>]) {
  for (int i = 0; i < half; ++i) v[i] = joined_halves<half, T>(v[i], v[i + half], std::make_index_sequence<kLanes<T>>());
  if constexpr (half > 1) return greatest_lanes<T, half / 2>(v);
  else return v[0];
}

}  // namespace jnn
