// Numbers of a mask's lanes that lie side by side in memory.
#pragma once

#include <cstdint>

#include "vector.h"

namespace jnn {

#if defined(__AVX2__) && !defined(__AVX512F__)
// The vector whose 32-bit lane i is that of v numbered by the i-th byte.
template <class T>
inline Vector<T> ordered_by(Vector<T> v, uint64_t lanes) {
  return (Vector<T>)_mm256_permutevar8x32_epi32((__m256i)v, _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(lanes)));
}

// The 32-bit lanes of a mask, by bytes of ones.
template <class T>
inline uint64_t bytes_of(Mask mask) {
  if constexpr (sizeof(T) == 8) mask = _pdep_u32(mask, 0x55) * 3;
  return _pdep_u64(mask, 0x0101010101010101) * 0xff;
}

constexpr uint64_t kInOrder = 0x0706050403020100;
#endif

// from[0], from[1], ... in the lanes of the mask, and v's in others. No more are read than there are lanes.
template <class T>
inline Vector<T> spread(const T* from, Mask mask, Vector<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm512_mask_expandloadu_ps((__m512)v, mask, from);
  else return (Vector<T>)_mm512_mask_expandloadu_pd((__m512d)v, mask, from);
#elif defined(__AVX2__)
  const Vector<T> read = load_some(from, __builtin_popcount(mask));
  const Vector<T> apart = ordered_by<T>(read, _pdep_u64(kInOrder, bytes_of<T>(mask)));
  return (Vector<T>)_mm256_blendv_epi8((__m256i)v, (__m256i)apart, lanes_of<T>(mask));
#else
  T lanes[kLanes<T>];
  store(lanes, v);
  for (; mask; mask &= mask - 1) lanes[__builtin_ctz(mask)] = *from++;
  return load(lanes);
#endif
}

// The lanes of the mask, in the first ones.
template <class T>
inline Vector<T> packed(Vector<T> v, Mask mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm512_maskz_compress_ps(mask, (__m512)v);
  else return (Vector<T>)_mm512_maskz_compress_pd(mask, (__m512d)v);
#elif defined(__AVX2__)
  return ordered_by<T>(v, _pext_u64(kInOrder, bytes_of<T>(mask)));
#else
  T lanes[kLanes<T>] = {};
  for (T* to = lanes; mask; mask &= mask - 1) *to++ = v[__builtin_ctz(mask)];
  return load(lanes);
#endif
}

}  // namespace jnn
