// Vectors of the processor's width.
#pragma once

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
  const auto half = __builtin_shufflevector(v, v, i...) + __builtin_shufflevector(v, v, (i + sizeof...(i))...);
  if constexpr (sizeof...(i) == 2) {
    return half[0] + half[1];
  } else {
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

// Bit i says whether lane i counts.
using Mask = uint32_t;

inline Mask between(int first, int end) { return first >= end ? 0 : ((end < 32 ? 1u << end : 0u) - 1u) & ~((1u << first) - 1u); }

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
#endif
  T lanes[kLanes<T>] = {};
  for (; mask; mask &= mask - 1) lanes[__builtin_ctz(mask)] = from[__builtin_ctz(mask) * step];
  return load(lanes);
}

// from[0], from[1], ... in the lanes of the mask, 0 in others.
template <class T>
inline Vector<T> load_spread(const T* from, Mask mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm512_maskz_expandloadu_ps(mask, from);
  else return (Vector<T>)_mm512_maskz_expandloadu_pd(mask, from);
#else
  T lanes[kLanes<T>] = {};
  for (; mask; mask &= mask - 1) lanes[__builtin_ctz(mask)] = *from++;
  return load(lanes);
#endif
}

// The lanes of the mask to to[i * step]; others are not written.
template <class T>
inline void store_masked(T* to, Vector<T> v, Mask mask, int64_t step) {
#if defined(__AVX512F__)
  if (step == 1) {
    if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(to, mask, (__m512)v);
    else return _mm512_mask_storeu_pd(to, mask, (__m512d)v);
  }
#endif
  T lanes[kLanes<T>];
  store(lanes, v);
  for (; mask; mask &= mask - 1) to[__builtin_ctz(mask) * step] = lanes[__builtin_ctz(mask)];
}

}  // namespace jnn
