// Transpositions of matrices, by squares that stay in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "lanes.h"
#include "vector.h"

namespace jnn {

// Row i of the lower half of pairs and row i + half change the blocks of `half` that stand off the diagonal.
template <class T, int half, size_t... i>
inline void exchange(Vector<T>& low, Vector<T>& high, std::index_sequence<i...>) {
  constexpr size_t lanes = sizeof...(i);
  const Vector<T> left = __builtin_shufflevector(low, high, (i & half ? lanes + i - half : i)...);
  high = __builtin_shufflevector(low, high, (i & half ? lanes + i : i + half)...);
  low = left;
}

// As many rows as lanes.
template <class T, int half = kLanes<T> / 2>
inline void transpose_square(Vector<T>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & half)) exchange<T, half>(rows[i], rows[i + half], std::make_index_sequence<kLanes<T>>());
  if constexpr (half > 1) transpose_square<T, half / 2>(rows);
}

// So few rows or columns are faster number by number.
constexpr int64_t kFew = 3;
// Rows that are written in turns go past the cache by whole lines: by halves of them they take twice as long.
constexpr bool kWholeLines = kVectorBytes >= 64;

// to(j)[i] = from[i * from_pitch + j * step] for i < rows and j < columns, `past` the cache or not.
template <class T, class To>
void transpose_to(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, int64_t step, const To& to, bool past = false) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t i = 0; i < rows; i += lanes) {
    const int64_t height = std::min(lanes, rows - i);
    for (int64_t j = 0; j < columns; j += lanes) {
      const int64_t width = std::min(lanes, columns - j);
      if (height <= kFew || width <= kFew) {
        for (int64_t c = j; c < j + width; ++c)
          for (int64_t r = i; r < i + height; ++r) to(c)[r] = from[r * from_pitch + c * step];
        continue;
      }
      const bool whole = height == lanes && width == lanes && step == 1;
      Vector<T> square[lanes];
#pragma GCC unroll 16
      for (int64_t r = 0; r < lanes; ++r) {
        const T* row = from + (i + r) * from_pitch + j * step;
        square[r] = whole ? load(row) : r < height ? load_masked(row, between(0, width), step) : Vector<T>{};
      }
      transpose_square<T>(square);
      if (height == lanes) {
        for (int64_t c = 0; c < width; ++c) past&& kWholeLines ? stream(to(j + c) + i, square[c]) : store(to(j + c) + i, square[c]);
      } else {
        for (int64_t c = 0; c < width; ++c) store_masked(to(j + c) + i, square[c], between(0, height), 1);
      }
    }
  }
}

// To to[j * to_pitch + i].
template <class T>
void transpose(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, T* to, int64_t to_pitch, int64_t step = 1,
               bool past = false) {
  transpose_to(from, from_pitch, rows, columns, step, [=](int64_t j) { return to + j * to_pitch; }, past);
}

}  // namespace jnn
