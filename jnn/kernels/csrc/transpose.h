// Transpositions of matrices, by squares that stay in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "vector.h"

namespace jnn {

// The lanes of two vectors in turns: the first halves of both, or the second.
template <class V, size_t... i>
inline V in_turns(V a, V b, int64_t half, std::index_sequence<i...>) {
  constexpr size_t lanes = sizeof...(i);
  return half ? __builtin_shufflevector(a, b, (lanes / 2 + i / 2 + i % 2 * lanes)...) : __builtin_shufflevector(a, b, (i / 2 + i % 2 * lanes)...);
}

// to[j * to_pitch + i] = from[i * from_pitch + j] for as many i and j as a vector has lanes.
template <class T>
inline void transpose_square(const T* from, int64_t from_pitch, T* to, int64_t to_pitch) {
  constexpr int lanes = kLanes<T>;
  constexpr auto all = std::make_index_sequence<lanes>();
  Vector<T> rows[lanes], mixed[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) rows[i] = load(from + i * from_pitch);
#pragma GCC unroll 4
  for (int round = 1; round < lanes; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) mixed[i] = in_turns(rows[i / 2], rows[i / 2 + lanes / 2], i % 2, all);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = mixed[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) store(to + i * to_pitch, rows[i]);
}

// to[j * to_pitch + i] = from[i * from_pitch + j] for i < rows and j < columns.
template <class T>
void transpose(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, T* to, int64_t to_pitch) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t i = 0; i < rows; i += lanes) {
    for (int64_t j = 0; j < columns; j += lanes) {
      if (i + lanes <= rows && j + lanes <= columns) {
        transpose_square(from + i * from_pitch + j, from_pitch, to + j * to_pitch + i, to_pitch);
        continue;
      }
      for (int64_t column = j; column < std::min(j + lanes, columns); ++column)
        for (int64_t row = i; row < std::min(i + lanes, rows); ++row) to[column * to_pitch + row] = from[row * from_pitch + column];
    }
  }
}

}  // namespace jnn
