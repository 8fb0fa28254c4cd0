// The inner loops of products of matrices: tiles that stay in registers.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "vector.h"

namespace jnn {

constexpr int kTileVectors = 2;
constexpr int kMostRows = kRegisters == 32 ? 14 : 6;
constexpr int kMostDots = kRegisters == 32 ? 5 : 3;
template <class T>
constexpr int kTileColumns = kTileVectors * kLanes<T>;

// c[i][j] = (add ? c[i][j] : bias ? bias[i] : 0) + sum over k of a[k * step + i] * b[offsets[k] + j], for `rows` rows of c, `stride` apart,
// and whole vectors.
template <class T, int vectors, int rows>
void tile(int64_t depth, const T* a, int64_t step, const T* b, const int32_t* offsets, T* c, int64_t stride, bool add, const T* bias) {
  Vector<T> sums[rows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) sums[i][j] = add ? load(c + i * stride + j * kLanes<T>) : bias ? broadcast(bias[i]) : Vector<T>{};
  for (int64_t k = 0; k < depth; ++k, a += step) {
    Vector<T> right[vectors];
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) right[j] = load(b + offsets[k] + j * kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Vector<T> left = broadcast(a[i]);
#pragma GCC unroll 8
      for (int j = 0; j < vectors; ++j) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) store(c + i * stride + j * kLanes<T>, sums[i][j]);
}

// c[i * c_stride + j] += sum over p < length of a[i * a_stride + p] * b[offsets[j] + p]; length is a multiple of the lanes.
template <class T, int rows, int columns>
void dots(int64_t length, const T* a, int64_t a_stride, const T* b, const int32_t* offsets, T* c, int64_t c_stride) {
  Vector<T> sums[rows][columns] = {};
  const T* from[columns];
#pragma GCC unroll 8
  for (int j = 0; j < columns; ++j) from[j] = b + offsets[j];
  for (int64_t p = 0; p < length; p += kLanes<T>) {
    Vector<T> right[columns];
#pragma GCC unroll 8
    for (int j = 0; j < columns; ++j) right[j] = load(from[j] + p);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Vector<T> left = load(a + i * a_stride + p);
#pragma GCC unroll 8
      for (int j = 0; j < columns; ++j) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < columns; ++j) c[i * c_stride + j] += total<T>(sums[i][j]);
}

template <class T>
using Tile = void (*)(int64_t, const T*, int64_t, const T*, const int32_t*, T*, int64_t, bool, const T*);
template <class T>
using Dots = void (*)(int64_t, const T*, int64_t, const T*, const int32_t*, T*, int64_t);

template <class T, int vectors, size_t... i>
constexpr std::array<Tile<T>, sizeof...(i)> tiles_of(std::index_sequence<i...>) {
  return {tile<T, vectors, i + 1>...};
}
template <class T, size_t... i>
constexpr std::array<Dots<T>, sizeof...(i)> dots_of(std::index_sequence<i...>) {
  return {dots<T, i / kMostDots + 1, i % kMostDots + 1>...};
}

// The tile of rows - 1, one of half as many columns, and the dots of (rows - 1) * kMostDots + columns - 1.
template <class T>
inline constexpr auto kTiles = tiles_of<T, kTileVectors>(std::make_index_sequence<kMostRows>());
template <class T>
inline constexpr auto kNarrowTiles = tiles_of<T, 1>(std::make_index_sequence<kMostRows>());
// Of few rows, so many tiles' columns at once: alone they would wait for their own sums.
constexpr int kWide = kRegisters == 32 ? 4 : 2, kWideRows = 3;
template <class T>
inline constexpr auto kWideTiles = tiles_of<T, kWide * kTileVectors>(std::make_index_sequence<kWideRows>());
template <class T>
inline constexpr auto kDots = dots_of<T>(std::make_index_sequence<kMostDots * kMostDots>());

// `count` cut into parts of `most` at most, as equal as can be: where part i begins.
struct Parts {
  int64_t count, parts;
  Parts(int64_t count, int64_t most) : count(count), parts((count + most - 1) / most) {}
  // As many parts for each of so many threads, if there are enough.
  static Parts shared(int64_t count, int64_t most, int64_t threads) {
    Parts made(count, most * threads);
    made.parts = std::min(count, made.parts * threads);
    return made;
  }
  int64_t begin(int64_t i) const { return i * count / parts; }
  int64_t size(int64_t i) const { return begin(i + 1) - begin(i); }
};

// So many threads are reckoned with where a formulation is chosen: what is chosen is for all machines the same.
constexpr int kThreads = 2;
// How many times faster than one these are with so many tasks, all alike.
inline double shared(int64_t tasks) { return double(tasks) / ((tasks + kThreads - 1) / kThreads); }

// How long tiles of so many rows in all take for a term, in cycles of a product of vectors: those of few rows wait for what they load.
inline double tile_cycles(int64_t rows, int64_t most = kMostRows) {
  const auto of_tile = [](int64_t rows) { return std::max(rows * 1.0, rows / 2.0 + 2); };
  const int64_t parts = Parts(rows, most).parts, size = rows / parts, longer = rows % parts;
  return (parts - longer) * of_tile(size) + longer * of_tile(size + 1);
}

}  // namespace jnn
