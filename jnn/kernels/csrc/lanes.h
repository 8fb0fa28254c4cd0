// Rows of any length, vector by vector.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "functions.h"
#include "vector.h"

namespace jnn {

// Past the cache where `to` is aligned: what it was is not read, but what is written must be when it is used.
template <class T>
inline void stream(T* to, Vector<T> v) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0) return _mm512_stream_si512((__m512i*)to, (__m512i)v);
#elif defined(__AVX2__)
  if (reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0) return _mm256_stream_si256((__m256i*)to, (__m256i)v);
#endif
  store(to, v);
}

// What was streamed is there for other threads.
inline void streamed() {
#if defined(__AVX512F__) || defined(__AVX2__)
  _mm_sfence();
#endif
}

template <class T>
using Integers = Vector<std::make_signed_t<Bits<T>>>;

// Whether any lane of a comparison holds.
template <class T>
inline bool any(Integers<T> lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes);
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)lanes);
#else
  return total<std::make_signed_t<Bits<T>>>(lanes);
#endif
}

// The first `count` of integers of the size of T, as integers of 32 bits.
template <class T>
inline void store_narrow(int32_t* to, Integers<T> v, int64_t count) {
  typedef int32_t Narrow __attribute__((vector_size(4 * kLanes<T>)));
  const Narrow narrow = __builtin_convertvector(v, Narrow);
  count == kLanes<T> ? std::memcpy(to, &narrow, sizeof narrow) : std::memcpy(to, &narrow, count * sizeof(int32_t));
}

// All lanes of a vector, and the first few. `past` the cache they are streamed.
template <class T>
struct Whole {
  static Vector<T> load(const T* from) { return jnn::load(from); }
  static void store(T* to, Vector<T> v, bool past = false) { past ? stream(to, v) : jnn::store(to, v); }
  // v in the lanes that count, else `other`.
  static Vector<T> keep(Vector<T> v, T = 0) { return v; }
  static Integers<T> keep(Integers<T> v, std::make_signed_t<Bits<T>>) { return v; }
};

// 0, 1, 2, ...
template <class T, size_t... i>
inline Integers<T> numbered(std::index_sequence<i...>) {
  return Integers<T>{i...};
}

template <class T>
struct Part {
  Mask mask;
  Integers<T> inside;
  explicit Part(int count) : mask(between(0, count)), inside(numbered<T>(std::make_index_sequence<kLanes<T>>()) < count) {}
  Vector<T> load(const T* from) const { return load_masked(from, mask, 1); }
  void store(T* to, Vector<T> v, bool = false) const { store_masked(to, v, mask, 1); }
  Vector<T> keep(Vector<T> v, T other = 0) const { return select<T>(inside, v, broadcast(other)); }
  Integers<T> keep(Integers<T> v, std::make_signed_t<Bits<T>> other) const { return inside ? v : other - Integers<T>{}; }
};

// So many sums of a row are taken side by side: an addition need not wait for the one before it.
constexpr int kWays = 4;
template <int i>
using Way = std::integral_constant<int, i>;

// run(at, way, lanes) for each vector of n numbers, which begins at `at`; `lanes` are Whole or, of the last one, Part.
template <class T, class Run>
inline void vectors(int64_t n, const Run& run) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t at = 0;
  for (; at + kWays * lanes <= n; at += kWays * lanes) {
    run(at, Way<0>{}, Whole<T>{});
    run(at + lanes, Way<1>{}, Whole<T>{});
    run(at + 2 * lanes, Way<2>{}, Whole<T>{});
    run(at + 3 * lanes, Way<3>{}, Whole<T>{});
  }
  for (; at + lanes <= n; at += lanes) run(at, Way<0>{}, Whole<T>{});
  if (at < n) run(at, Way<1>{}, Part<T>(n - at));
}

// run(at, columns, lanes) for blocks of vectors side by side, which make up a row of `width` numbers.
template <class T, class Run>
inline void blocks(int64_t width, const Run& run) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t at = 0;
  for (; at + kWays * lanes <= width; at += kWays * lanes) run(at, Way<kWays>{}, Whole<T>{});
  for (; at + lanes <= width; at += lanes) run(at, Way<1>{}, Whole<T>{});
  if (at < width) run(at, Way<1>{}, Part<T>(width - at));
}

template <class T>
inline Vector<T> joined(const Vector<T> (&ways)[kWays]) {
  return (ways[0] + ways[1]) + (ways[2] + ways[3]);
}

}  // namespace jnn
