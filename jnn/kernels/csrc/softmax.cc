// Softmax along an axis, its logarithm, or that of one number of each row, and their gradients.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "buffers.h"
#include "functions.h"
#include "lanes.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

template <class V>
inline V greater(V a, V b) {
  return a > b ? a : b;
}

// The greatest of n numbers times `sign`; NaN may be passed over.
template <class T>
T most_of(int64_t n, const T* x, T sign = 1) {
  constexpr T least = -std::numeric_limits<T>::infinity();
  Vector<T> found[kWays] = {broadcast(T{0}) + least, broadcast(T{0}) + least, broadcast(T{0}) + least, broadcast(T{0}) + least};
  vectors<T>(n, [&](int64_t at, auto way, auto lanes) { found[way] = greater(lanes.keep(sign * lanes.load(x + at), least), found[way]); });
  const Vector<T> all = greater(greater(found[0], found[1]), greater(found[2], found[3]));
  T most = all[0];
  for (int i = 1; i < kLanes<T>; ++i) most = greater(most, T(all[i]));
  return most;
}

// exp(sign x - most) of a row, which goes to y unless that is null, and the sum.
template <bool written, class T>
T exponentials(int64_t n, const T* x, T most, T* y, T sign = 1) {
  Vector<T> sums[kWays] = {};
  vectors<T>(n, [&](int64_t at, auto way, auto lanes) {
    const Vector<T> power = exp<T>(sign * lanes.load(x + at) - most);
    if (written) lanes.store(y + at, power);
    sums[way] += lanes.keep(power);
  });
  return total<T>(joined<T>(sums));
}

template <bool log, class T>
void forward_row(int64_t n, T sign, const T* x, T* y, bool past) {
  const T most = most_of(n, x, sign), sum = exponentials<!log>(n, x, most, y, sign);
  const T off = std::log(sum), factor = 1 / sum;
  vectors<T>(n, [&](int64_t at, auto, auto lanes) {
    if constexpr (log) lanes.store(y + at, (sign * lanes.load(x + at) - most) - off, past);
    else lanes.store(y + at, lanes.load(y + at) * factor);
  });
}

// y (g - sum(y g)), or of the logarithm y, g - exp(y) sum(g), times `sign`.
template <bool log, class T>
void backward_row(int64_t n, T sign, const T* g, const T* y, T* dx, bool past) {
  Vector<T> sums[kWays] = {};
  vectors<T>(n, [&](int64_t at, auto way, auto lanes) { sums[way] += log ? lanes.load(g + at) : lanes.load(g + at) * lanes.load(y + at); });
  const T sum = total<T>(joined<T>(sums));
  vectors<T>(n, [&](int64_t at, auto, auto lanes) {
    const Vector<T> slope = lanes.load(g + at), value = lanes.load(y + at);
    if constexpr (log) lanes.store(dx + at, sign * (slope - exp<T>(value) * sum), past);
    else lanes.store(dx + at, sign * value * (slope - sum), past);
  });
}

// The sum of term(i) for i < n, block by block: one to which all were added would lose digits.
template <class T, class Term>
Vector<T> sum_down(int64_t n, const Term& term) {
  constexpr int64_t kBlock = 32;
  Vector<T> sum{};
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    Vector<T> part{};
    for (int64_t i = begin, end = std::min(begin + kBlock, n); i < end; ++i) part += term(i);
    sum += part;
  }
  return sum;
}

// The greatest of each of neighbouring columns.
template <class T, class Lanes>
Vector<T> most_down(int64_t n, int64_t stride, T sign, const Lanes& lanes, const T* x) {
  Vector<T> most = sign * lanes.load(x);
  for (int64_t i = 1; i < n; ++i) most = greater(Vector<T>(sign * lanes.load(x + i * stride)), most);
  return most;
}

// Neighbouring columns of n numbers each, `stride` apart, as many as there are lanes.
template <bool log, class T, class Lanes>
void forward_columns(int64_t n, int64_t stride, T sign, const Lanes& lanes, const T* x, T* y, bool past) {
  const Vector<T> most = most_down(n, stride, sign, lanes, x);
  const Vector<T> sum = sum_down<T>(n, [&](int64_t i) {
    const Vector<T> power = exp<T>(sign * lanes.load(x + i * stride) - most);
    if (!log) lanes.store(y + i * stride, power);
    return power;
  });
  const Vector<T> off = log ? jnn::log<T>(sum) : Vector<T>{}, factor = 1 / sum;
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (log) lanes.store(y + i * stride, (sign * lanes.load(x + i * stride) - most) - off, past);
    else lanes.store(y + i * stride, lanes.load(y + i * stride) * factor);
  }
}

template <bool log, class T, class Lanes>
void backward_columns(int64_t n, int64_t stride, T sign, const Lanes& lanes, const T* g, const T* y, T* dx, bool past) {
  const Vector<T> sum = sum_down<T>(n, [&](int64_t i) {
    const Vector<T> slope = lanes.load(g + i * stride);
    return log ? slope : slope * lanes.load(y + i * stride);
  });
  for (int64_t i = 0; i < n; ++i) {
    const Vector<T> slope = lanes.load(g + i * stride), value = lanes.load(y + i * stride);
    if constexpr (log) lanes.store(dx + i * stride, sign * (slope - exp<T>(value) * sum), past);
    else lanes.store(dx + i * stride, sign * value * (slope - sum), past);
  }
}

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

// run(zero, row) for each row of x, along the last axis.
template <class Run>
ffi::Error by_row(Pool& pool, const In& x, const Run& run) {
  const int64_t size = x.element_count(), n = x.dimensions().back();
  return by_type(x.element_type(), [&](auto zero) {
    by_task(pool, size / n, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) run(zero, row, n, past_cache<decltype(zero)>(size));
    });
  });
}

// run(zero, begin, n, stride, lanes, past) for neighbouring columns along an axis, which begin at `begin`.
template <class Run>
ffi::Error by_column(Pool& pool, const In& x, int64_t axis, const Run& run) {
  const auto sizes = x.dimensions();
  const int64_t size = x.element_count(), n = sizes[axis];
  const int64_t inner = std::accumulate(sizes.begin() + axis + 1, sizes.end(), int64_t{1}, std::multiplies<int64_t>());
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t lanes = kLanes<T>;
    const int64_t blocks = (inner + lanes - 1) / lanes;
    by_task(pool, size / (n * inner) * blocks, n * std::min(lanes, inner), 1, [&](int64_t from, int64_t to) {
      for (int64_t block = from; block < to; ++block) {
        const int64_t column = block % blocks * lanes, begin = block / blocks * n * inner + column;
        if (column + lanes <= inner) run(zero, begin, n, inner, Whole<T>{}, past_cache<T>(size));
        else run(zero, begin, n, inner, Part<T>(inner - column), false);
      }
    });
  });
}

ffi::Error forward(Pool pool, bool log, int64_t axis, bool negated, In x, Out y) {
  if (axis + 1 < int64_t(x.dimensions().size()))
    return by_column(pool, x, axis, [&](auto zero, int64_t begin, int64_t n, int64_t stride, const auto& lanes, bool past) {
      using T = decltype(zero);
      const T* from = data<T>(x) + begin;
      T *to = data<T>(y) + begin, sign = negated ? -1 : 1;
      log ? forward_columns<true>(n, stride, sign, lanes, from, to, past) : forward_columns<false>(n, stride, sign, lanes, from, to, past);
    });
  return by_row(pool, x, [&](auto zero, int64_t row, int64_t n, bool past) {
    using T = decltype(zero);
    const T* from = data<T>(x) + row * n;
    T *to = data<T>(y) + row * n, sign = negated ? -1 : 1;
    log ? forward_row<true>(n, sign, from, to, past) : forward_row<false>(n, sign, from, to, past);
  });
}

ffi::Error backward(Pool pool, bool log, int64_t axis, bool negated, In g, In y, Out dx) {
  if (axis + 1 < int64_t(y.dimensions().size()))
    return by_column(pool, y, axis, [&](auto zero, int64_t begin, int64_t n, int64_t stride, const auto& lanes, bool past) {
      using T = decltype(zero);
      const T *slope = data<T>(g) + begin, *value = data<T>(y) + begin;
      T *to = data<T>(dx) + begin, sign = negated ? -1 : 1;
      log ? backward_columns<true>(n, stride, sign, lanes, slope, value, to, past)
          : backward_columns<false>(n, stride, sign, lanes, slope, value, to, past);
    });
  return by_row(pool, y, [&](auto zero, int64_t row, int64_t n, bool past) {
    using T = decltype(zero);
    const T *slope = data<T>(g) + row * n, *value = data<T>(y) + row * n;
    T *to = data<T>(dx) + row * n, sign = negated ? -1 : 1;
    log ? backward_row<true>(n, sign, slope, value, to, past) : backward_row<false>(n, sign, slope, value, to, past);
  });
}

// Where the one number of each column is that a reduction leaves, of columns that begin at `begin`.
int64_t reduced(int64_t begin, int64_t n, int64_t stride) { return begin / (n * stride) * stride + begin % stride; }

// The logarithm for one number of each row or column; the greatest of it, and the logarithm of the sum of exp(x - most).
ffi::Error forward_at(Pool pool, int64_t axis, In x, In index, Out y, Out most, Out off) {
  if (axis + 1 < int64_t(x.dimensions().size()))
    return by_column(pool, x, axis, [&](auto zero, int64_t begin, int64_t n, int64_t stride, const auto& lanes, bool) {
      using T = decltype(zero);
      const T* from = data<T>(x) + begin;
      const int64_t at = reduced(begin, n, stride);
      const Vector<T> greatest = most_down(n, stride, T{1}, lanes, from);
      const Vector<T> sum = log<T>(sum_down<T>(n, [&](int64_t i) { return exp<T>(lanes.load(from + i * stride) - greatest); }));
      T chosen[kLanes<T>] = {};
      for (int64_t lane = 0; lane < std::min<int64_t>(kLanes<T>, stride - begin % stride); ++lane)
        chosen[lane] = from[data<int32_t>(index)[at + lane] * stride + lane];
      lanes.store(data<T>(most) + at, greatest);
      lanes.store(data<T>(off) + at, sum);
      lanes.store(data<T>(y) + at, (load(chosen) - greatest) - sum);
    });
  return by_row(pool, x, [&](auto zero, int64_t row, int64_t n, bool) {
    using T = decltype(zero);
    const T *from = data<T>(x) + row * n, greatest = most_of(n, from);
    const T sum = std::log(exponentials<false>(n, from, greatest, static_cast<T*>(nullptr)));
    data<T>(most)[row] = greatest;
    data<T>(off)[row] = sum;
    data<T>(y)[row] = (from[data<int32_t>(index)[row]] - greatest) - sum;
  });
}

ffi::Error backward_at(Pool pool, int64_t axis, In g, In x, In index, In most, In off, Out dx) {
  if (axis + 1 < int64_t(x.dimensions().size()))
    return by_column(pool, x, axis, [&](auto zero, int64_t begin, int64_t n, int64_t stride, const auto& lanes, bool past) {
      using T = decltype(zero);
      const T* from = data<T>(x) + begin;
      T* to = data<T>(dx) + begin;
      const int64_t at = reduced(begin, n, stride);
      const Vector<T> slope = lanes.load(data<T>(g) + at), greatest = lanes.load(data<T>(most) + at), sum = lanes.load(data<T>(off) + at);
      Integers<T> chosen{};
      for (int64_t lane = 0; lane < std::min<int64_t>(kLanes<T>, stride - begin % stride); ++lane)
        chosen[lane] = data<int32_t>(index)[at + lane];
      for (int64_t i = 0; i < n; ++i) {
        const Vector<T> share = exp<T>((lanes.load(from + i * stride) - greatest) - sum);
        lanes.store(
            to + i * stride,
            slope *
                (select<T>(chosen == Integers<T>{} + static_cast<std::make_signed_t<Bits<T>>>(i), broadcast(T{1}), Vector<T>{}) - share),
            past);
      }
    });
  return by_row(pool, x, [&](auto zero, int64_t row, int64_t n, bool past) {
    using T = decltype(zero);
    const T *from = data<T>(x) + row * n, slope = data<T>(g)[row], greatest = data<T>(most)[row], sum = data<T>(off)[row];
    const int32_t chosen = data<int32_t>(index)[row];
    T* to = data<T>(dx) + row * n;
    vectors<T>(
        n, [&](int64_t at, auto, auto lanes) { lanes.store(to + at, exp<T>((lanes.load(from + at) - greatest) - sum) * -slope, past); });
    to[chosen] += slope;
  });
}

auto bound() { return ffi::Ffi::Bind().Ctx<Pool>(); }
auto of_number() { return bound().Attr<int64_t>("axis"); }
auto along_axis() { return bound().Attr<bool>("log").Attr<int64_t>("axis").Attr<bool>("negated"); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_softmax, forward, along_axis().Arg<In>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_softmax_backward, backward, along_axis().Arg<In>().Arg<In>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_log_softmax_at, forward_at, of_number().Arg<In>().Arg<In>().Ret<In>().Ret<In>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_log_softmax_at_backward, backward_at,
                              of_number().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Ret<In>());

}  // namespace jnn
