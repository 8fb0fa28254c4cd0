// What is added of the difference of two numbers.
#pragma once

#include <string_view>
#include <type_traits>

#include "buffers.h"
#include "functions.h"
#include "parallel.h"
#include "vector.h"

namespace jnn {

template <class T>
struct Square {
  Vector<T> value(Vector<T> d) const { return d * d; }
  Vector<T> slope(Vector<T> d) const { return d + d; }
};

template <class T>
struct Size {
  Vector<T> value(Vector<T> d) const { return absolute<T>(d); }
  // Of 0 it is 0, and of NaN NaN.
  Vector<T> slope(Vector<T> d) const { return select<T>((d > T{0}) | (d < T{0}), with_sign<T>(broadcast(T{1}), d), d); }
};

// d^2 / 2, and beyond the limit the line that continues it.
template <class T>
struct Huber {
  T limit;
  Vector<T> value(Vector<T> d) const {
    const Vector<T> size = absolute<T>(d), limited = select<T>(size < limit, size, broadcast(limit));
    return limited * (size - T(.5) * limited);
  }
  Vector<T> slope(Vector<T> d) const { return select<T>(absolute<T>(d) > limit, with_sign<T>(broadcast(limit), d), d); }
};

template <class T>
struct Count {
  Vector<T> value(Vector<T> d) const { return select<T>((d > T{0}) | (d < T{0}), broadcast(T{1}), d); }
  Vector<T> slope(Vector<T>) const { return Vector<T>{}; }
};

// The greatest |d|, or NaN where one is; all that are as great have its slope.
template <class T>
struct Greatest {
  Vector<T> value(Vector<T> d) const { return absolute<T>(d); }
  Vector<T> slope(Vector<T> d, Vector<T> greatest) const {
    const Vector<T> gap = absolute<T>(d) - greatest, sign = select<T>(d != T{0}, with_sign<T>(broadcast(T{1}), d), Vector<T>{});
    return select<T>(gap < T{0}, Vector<T>{}, sign + gap);
  }
};

template <class Penalty, class T>
constexpr bool is_greatest = std::is_same_v<Penalty, Greatest<T>>;

// The penalties of several differences as one.
template <class Penalty, class T>
inline Vector<T> together(Vector<T> a, Vector<T> b) {
  if constexpr (is_greatest<Penalty, T>) return select<T>((b > a) | (b != b), b, a);
  else return a + b;
}

// Calls run with a zero of the type and the penalty.
template <class Run>
ffi::Error by_kind(ffi::DataType type, std::string_view kind, double limit, const Run& run) {
  return by_type(type, [&](auto zero) {
    using T = decltype(zero);
    if (kind == "square") return run(zero, Square<T>{});
    if (kind == "size") return run(zero, Size<T>{});
    run(zero, Huber<T>{T(limit)});
  });
}

// A call with its context and what says which penalty it is of.
inline auto of_penalty() { return ffi::Ffi::Bind().Ctx<Pool>().Attr<std::string_view>("kind").Attr<double>("limit").Attr<double>("shift"); }

}  // namespace jnn
