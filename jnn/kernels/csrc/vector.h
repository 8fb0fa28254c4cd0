// Vectors of the processor's width.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace jnn {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#else
constexpr int kVectorBytes = 16, kRegisters = 32;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

// As many numbers as make whole vectors.
template <class T>
constexpr int64_t whole(int64_t numbers) {
  return (numbers + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

template <class T>
inline Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

// The sum of the lanes, by halves. Shuffles keep the vector in its register.
template <class V, size_t... i>
inline auto sum_of(V v, std::index_sequence<i...>) {
  if constexpr (sizeof...(i) == 1) {
    return v[0] + v[1];
  } else {
    const auto half = __builtin_shufflevector(v, v, i...) + __builtin_shufflevector(v, v, (i + sizeof...(i))...);
    return sum_of(half, std::make_index_sequence<sizeof...(i) / 2>());
  }
}

template <class T>
inline T total(Vector<T> v) {
  return sum_of(v, std::make_index_sequence<kLanes<T> / 2>());
}

// a[0], b[0], a[1], ... in two vectors.
template <class T, size_t... i>
inline std::pair<Vector<T>, Vector<T>> interleaved_of(Vector<T> a, Vector<T> b, std::index_sequence<i...>) {
  constexpr size_t n = sizeof...(i);
  return {__builtin_shufflevector(a, b, (i / 2 + i % 2 * n)...), __builtin_shufflevector(a, b, (n / 2 + i / 2 + i % 2 * n)...)};
}

template <class T>
inline std::pair<Vector<T>, Vector<T>> interleaved(Vector<T> a, Vector<T> b) {
  return interleaved_of<T>(a, b, std::make_index_sequence<kLanes<T>>());
}

// a[0], a[2], ... b[0], b[2], ... and a[1], a[3], ...
template <class T, size_t... i>
inline std::pair<Vector<T>, Vector<T>> apart_of(Vector<T> a, Vector<T> b, std::index_sequence<i...>) {
  return {__builtin_shufflevector(a, b, 2 * i...), __builtin_shufflevector(a, b, (2 * i + 1)...)};
}

template <class T>
inline std::pair<Vector<T>, Vector<T>> apart(Vector<T> a, Vector<T> b) {
  return apart_of<T>(a, b, std::make_index_sequence<kLanes<T>>());
}

// Bit i says whether lane i counts.
using Mask = uint32_t;

inline Mask between(int first, int end) { return first >= end ? 0 : ((end < 32 ? 1u << end : 0u) - 1u) & ~((1u << first) - 1u); }

#if defined(__AVX2__) && !defined(__AVX512F__)
// All bits of the lanes of a mask.
template <class T>
inline __m256i lanes_of(Mask mask) {
  if constexpr (sizeof(T) == 4) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), bits), bits);
  } else {
    const __m256i bits = _mm256_setr_epi64x(1, 2, 4, 8);
    return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(mask), bits), bits);
  }
}

template <class T>
inline Vector<T> load_lanes(const T* from, Mask mask) {
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm256_maskload_ps(from, lanes_of<T>(mask));
  else return (Vector<T>)_mm256_maskload_pd(from, lanes_of<T>(mask));
}
#endif

// from[i * step] in the lanes of the mask, 0 in others, which are not read.
template <class T>
inline Vector<T> load_masked(const T* from, Mask mask, int64_t step) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    if (step == 1) return (Vector<T>)_mm512_maskz_loadu_ps(mask, from);
    if (step == 2) {
      const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
      const __m512 low = _mm512_maskz_loadu_ps(_pdep_u32(mask, 0x5555), from);
      const __m512 high = _mm512_maskz_loadu_ps(_pdep_u32(mask >> 8, 0x5555), from + 16);
      return (Vector<T>)_mm512_permutex2var_ps(low, even, high);
    }
  } else {
    if (step == 1) return (Vector<T>)_mm512_maskz_loadu_pd(mask, from);
  }
#elif defined(__AVX2__)
  if (step == 1) return load_lanes(from, mask);
  if constexpr (sizeof(T) == 4) {
    if (step == 2) return apart<T>(load_lanes(from, _pdep_u32(mask, 0x55)), load_lanes(from + 8, _pdep_u32(mask >> 4, 0x55))).first;
  }
#endif
  T lanes[kLanes<T>] = {};
  for (; mask; mask &= mask - 1) lanes[__builtin_ctz(mask)] = from[__builtin_ctz(mask) * step];
  return load(lanes);
}

// The lanes of the mask to to[i * step]; others are not written.
template <class T>
inline void store_masked(T* to, Vector<T> v, Mask mask, int64_t step) {
#if defined(__AVX512F__)
  if (step == 1) {
    if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(to, mask, (__m512)v);
    else return _mm512_mask_storeu_pd(to, mask, (__m512d)v);
  }
#else
  if (step == 1 && mask == between(0, kLanes<T>)) return store(to, v);
#endif
  T lanes[kLanes<T>];
  store(lanes, v);
  for (; mask; mask &= mask - 1) to[__builtin_ctz(mask) * step] = lanes[__builtin_ctz(mask)];
}

// So many numbers are moved by half a vector, where there is one: 0.4 to 0.6 of the time.
template <class T>
constexpr int64_t kFewLanes = kLanes<T> / 2;

// To the first kFewLanes lanes of a mask from[i], or 0 in those that are not to be read; others are not written.
template <class T>
inline void copy_few(const T* from, Mask read, T* to, Mask written) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm256_mask_storeu_ps(to, written, _mm256_maskz_loadu_ps(read, from));
  else _mm256_mask_storeu_pd(to, written, _mm256_maskz_loadu_pd(read, from));
#else
  store_masked(to, load_masked(from, read, 1), written, 1);
#endif
}

// The first `count` lanes, or all where there are more.
template <class T>
inline Vector<T> load_some(const T* from, int64_t count) {
  return count >= kLanes<T> ? load(from) : load_masked(from, between(0, static_cast<int>(count)), 1);
}

template <class T>
inline void store_some(T* to, Vector<T> v, int64_t count) {
  count >= kLanes<T> ? store(to, v) : store_masked(to, v, between(0, static_cast<int>(count)), 1);
}

// Of runs of a few vectors, for which a call of memmove takes longer. Returns where they end.
template <class T>
inline T* copy_short(const T* from, int64_t count, T* to) {
#if defined(__AVX512F__)
  for (int64_t i = 0; i < count; i += kLanes<T>) store_some(to + i, load_some(from + i, count - i), count - i);
  return to + count;
#else
  return std::copy_n(from, count, to);
#endif
}

}  // namespace jnn
