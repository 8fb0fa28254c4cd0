// Transpositions of matrices, by squares that stay in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
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

// Every `count`-th number of as many vectors, from each of the first on, where count is a power of 2.
template <class T, int count>
[[gnu::always_inline]] inline void spread_apart(Vector<T>* v) {
  if constexpr (count > 1) {
    Vector<T> even[count / 2], odd[count / 2];
#pragma GCC unroll 8
    for (int i = 0; i < count / 2; ++i) std::tie(even[i], odd[i]) = apart<T>(v[2 * i], v[2 * i + 1]);
    spread_apart<T, count / 2>(even), spread_apart<T, count / 2>(odd);
#pragma GCC unroll 8
    for (int i = 0; i < count / 2; ++i) v[2 * i] = even[i], v[2 * i + 1] = odd[i];
  }
}

// to(j)[i] = from[i * columns + j] for i < rows, no more than lanes.
template <int columns, class T, class To>
inline void transpose_narrow(const T* from, int64_t rows, const To& to) {
  Vector<T> v[columns];
#pragma GCC unroll 8
  for (int j = 0; j < columns; ++j) v[j] = load_some(from + j * kLanes<T>, rows * columns - j * kLanes<T>);
  spread_apart<T, columns>(v);
#pragma GCC unroll 8
  for (int j = 0; j < columns; ++j) store_some(to(j), v[j], rows);
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
    if (from_pitch == columns && step == 1 && columns < lanes && !past && (columns == 4 || columns == 8)) {
      const auto row = [&](int64_t j) { return to(j) + i; };
      columns == 4 ? transpose_narrow<4>(from + i * columns, height, row) : transpose_narrow<8>(from + i * columns, height, row);
      continue;
    }
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

// to[j * pitch + i] = rows[i][j] for j < size, of as many rows as lanes at most. What rows have behind that is read, up to whole vectors.
template <class T>
void interleave(const T* const* rows, int64_t count, int64_t size, T* to, int64_t pitch) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t j = 0; j < size; j += lanes) {
    Vector<T> square[lanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < lanes; ++i) square[i] = i < count ? load(rows[i] + j) : Vector<T>{};
    transpose_square<T>(square);
    for (int64_t i = 0; i < std::min(lanes, size - j); ++i) store_some(to + (j + i) * pitch, square[i], count);
  }
}

}  // namespace jnn
