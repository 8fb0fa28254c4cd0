// Elementary functions of vectors, right to 2.5 units in the last place (exp and log to 1) for every number, infinities and NaN included.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "vector.h"

namespace jnn {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// How T is laid out, and what exp and log need to know of it.
template <class T>
struct Real {
  static constexpr bool single = sizeof(T) == 4;
  static constexpr int digits = std::numeric_limits<T>::digits - 1;
  static constexpr Bits<T> bias = std::numeric_limits<T>::max_exponent - 1;
  // Added to a number it leaves the nearest integer in the last bits.
  static constexpr T shift = T{3} * (Bits<T>{1} << (digits - 1));
  // log(2) in two parts, of which an integer times the first is exact.
  static constexpr T high = single ? 0.693359375 : 6.93147180369123816490e-01, low = single ? -2.12194440e-4 : 1.90821492927058770002e-10;
  // exp is infinite above the one and 0 below the other.
  static constexpr T most = single ? 89 : 710, least = single ? -104 : -746;
};

template <class T>
inline Vector<Bits<T>> bits(Vector<T> x) {
  return (Vector<Bits<T>>)x;
}

template <class T>
inline Vector<T> select(Vector<std::make_signed_t<Bits<T>>> condition, Vector<T> yes, Vector<T> no) {
  return condition ? yes : no;
}

template <class T>
inline Vector<T> absolute(Vector<T> x) {
  return (Vector<T>)(bits<T>(x) & ~(Bits<T>{1} << (8 * sizeof(T) - 1)));
}

template <class T>
inline Vector<T> root(Vector<T> x) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

// |x| with the sign of y.
template <class T>
inline Vector<T> with_sign(Vector<T> x, Vector<T> y) {
  constexpr Bits<T> sign = Bits<T>{1} << (8 * sizeof(T) - 1);
  return (Vector<T>)((bits<T>(x) & ~sign) | (bits<T>(y) & sign));
}

// The greater of two; NaN if x is.
template <class T>
inline Vector<T> greater(Vector<T> x, Vector<T> y) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm512_max_ps((__m512)y, (__m512)x);
  else return (Vector<T>)_mm512_max_pd((__m512d)y, (__m512d)x);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm256_max_ps((__m256)y, (__m256)x);
  else return (Vector<T>)_mm256_max_pd((__m256d)y, (__m256d)x);
#else
  return select<T>(x < y, y, x);
#endif
}

template <class T>
inline Vector<T> at_least(Vector<T> x, T least) {
  return greater<T>(x, broadcast(least));
}

// The nearest integer to numbers that are not too large for Real<T>::shift.
template <class T>
inline Vector<T> rounded(Vector<T> x) {
#if defined(__AVX512F__)
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm512_roundscale_ps((__m512)x, nearest);
  else return (Vector<T>)_mm512_roundscale_pd((__m512d)x, nearest);
#else
  return (x + Real<T>::shift) - Real<T>::shift;
#endif
}

// The greatest integer that is not greater, where rounded() gives the nearest.
template <class T>
inline Vector<T> floored(Vector<T> x) {
  const Vector<T> nearest = rounded<T>(x);
  return nearest - select<T>(nearest > x, broadcast(T{1}), Vector<T>{});
}

// coefficients[0] + coefficients[1] x + ...
template <class T, size_t n>
inline Vector<T> polynomial(const std::array<T, n>& coefficients, Vector<T> x) {
  Vector<T> sum = broadcast(coefficients[n - 1]);
#pragma GCC unroll 16
  for (int i = n - 2; i >= 0; --i) sum = sum * x + broadcast(coefficients[i]);
  return sum;
}

// 1 / 2!, 1 / 3!, ...
template <class T, size_t n>
constexpr std::array<T, n> inverse_factorials() {
  std::array<T, n> found{};
  double factorial = 1;
  for (size_t i = 0; i < n; ++i) found[i] = T(1 / (factorial *= i + 2));
  return found;
}

// 2 / 3, 2 / 5, ...
template <class T, size_t n>
constexpr std::array<T, n> twice_inverse_odds() {
  std::array<T, n> found{};
  for (size_t i = 0; i < n; ++i) found[i] = T(2. / (2 * i + 3));
  return found;
}

// exp(x) = (1 + part) 2^power, for x between Real<T>::least and most.
template <class T>
struct Exponential {
  Vector<T> part, power;
  explicit Exponential(Vector<T> x) {
    static constexpr auto series = inverse_factorials<T, Real<T>::single ? 6 : 12>();
    power = rounded<T>(x * T(1.44269504088896340736));
    const Vector<T> rest = x - power * Real<T>::high - power * Real<T>::low;
    part = rest + rest * rest * polynomial<T>(series, rest);
  }
};

// x 2^power, rounded once where it is less than the least normal number.
template <class T>
inline Vector<T> scaled(Vector<T> x, Vector<T> power) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm512_scalef_ps((__m512)x, (__m512)power);
  else return (Vector<T>)_mm512_scalef_pd((__m512d)x, (__m512d)power);
#else
  // By two powers, of which neither is out of range.
  const Vector<Bits<T>> both = bits<T>(power + Real<T>::shift) - bits<T>(broadcast(Real<T>::shift)) + 2 * Real<T>::bias;
  const Vector<Bits<T>> half = both >> 1;
  return x * (Vector<T>)(half << Real<T>::digits) * (Vector<T>)((both - half) << Real<T>::digits);
#endif
}

template <class T>
inline Vector<T> exp(Vector<T> x) {
  x = select<T>(x > Real<T>::most, broadcast(Real<T>::most), x);
  const Exponential<T> found(at_least<T>(x, Real<T>::least));
  return scaled<T>(found.part + T{1}, found.power);
}

// 1 / (1 + exp(-x))
template <class T>
inline Vector<T> sigmoid(Vector<T> x) {
  const Exponential<T> found(at_least<T>(-absolute<T>(x), Real<T>::least));
  const Vector<T> power = scaled<T>(found.part + T{1}, found.power), one = broadcast(T{1});
  return select<T>(x < T{0}, power, one) / (one + power);
}

template <class T>
inline Vector<T> tanh(Vector<T> x) {
  // exp(-2 |x|) - 1; nothing is lost where it is small.
  const Exponential<T> found(at_least<T>(T{-2} * absolute<T>(x), Real<T>::least));
  const Vector<T> power = scaled<T>(broadcast(T{1}), found.power), less = power * found.part + (power - T{1});
  return with_sign<T>(less / (less + T{2}), x);
}

template <class T>
inline Vector<T> log(Vector<T> x) {
  static constexpr auto series = twice_inverse_odds<T, Real<T>::single ? 5 : 11>();
  constexpr T infinity = std::numeric_limits<T>::infinity(), tiny = std::numeric_limits<T>::min(), lift = Bits<T>{1} << Real<T>::digits;
  constexpr Bits<T> root = Real<T>::single ? Bits<T>{0x3f3504f3} : Bits<T>(0x3fe6a09e667f3bcd);
  const auto small = x < tiny;
  const Vector<T> normal = select<T>(small, x * lift, x);
  // x = 2^power (1 + rest), where 1 + rest lies between the roots of a half and of two.
  const Vector<Bits<T>> above = bits<T>(normal) - root;
  const auto integer = (Vector<std::make_signed_t<Bits<T>>>)above >> Real<T>::digits;
  const Vector<T> power = __builtin_convertvector(integer, Vector<T>) - select<T>(small, broadcast(T(Real<T>::digits)), Vector<T>{});
  const Vector<T> rest = (Vector<T>)(bits<T>(normal) - ((Vector<Bits<T>>)integer << Real<T>::digits)) - T{1};
  const Vector<T> ratio = rest / (rest + T{2}), square = ratio * ratio, half = rest * rest * T(.5);
  const Vector<T> sum = ratio * (half + square * polynomial<T>(series, square)) + power * Real<T>::low;
  const Vector<T> found = power * Real<T>::high + (rest - (half - sum));
  const Vector<T> special =
      select<T>(x == T{0}, broadcast(-infinity), select<T>(x > T{0}, x, broadcast(std::numeric_limits<T>::quiet_NaN())));
  return select<T>((x > T{0}) & (x < infinity), found, special);
}

// log(1 + x) for x from 0 to 1.
template <class T>
inline Vector<T> log_of_more(Vector<T> x) {
  static constexpr auto series = twice_inverse_odds<T, Real<T>::single ? 6 : 15>();
  // Twice the ratio of the series, which is no less than x, be that the least normal number.
  const Vector<T> ratio = (x + x) / (x + T{2}), square = ratio * ratio * T(.25);
  return ratio + ratio * (square * T(.5)) * polynomial<T>(series, square);
}

}  // namespace jnn
