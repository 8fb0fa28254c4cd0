// Products of matrices that stand in the order in which tiles read them, and how they come to stand so.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "memory.h"
#include "products.h"
#include "transpose.h"
#include "vector.h"

namespace jnn {

// Sums that a tile keeps in registers, and so its rows for so many vectors of columns.
constexpr int kSums = kRegisters == 32 ? 28 : 12;
template <int vectors>
constexpr int kRowsOf = kSums / vectors;
// Of rows that are read as they stand: more of them, if they begin at one place of a page, drive each other out of the first cache.
constexpr int kStandingRows = std::min(kRowsOf<kTileVectors>, 7);

// What the rows of a panel of sums begin with, `stride` apart: zeros where there are none.
template <class T>
struct Start {
  const T* rows;
  int64_t stride;
};

// Rows of a left factor: in runs of a row's terms or, where runs are of none, as they stand, `pitch` apart.
template <class T>
struct Left {
  const T* data;
  int64_t pitch;
  Left(const T* data, int64_t pitch = 0) : data(data), pitch(pitch) {}
};

// c[i][j] = start[i][j] + sum over k of a[i][k] * b[k * columns + j], for `rows` rows of c, `stride` apart, and columns that make so many
// vectors. In runs a[i][k] is the ((k / run * rows + i) * run + k % run)-th.
template <class T, int rows, int vectors, int run>
void panel(int64_t depth, Left<T> a, const T* b, Start<T> start, T* c, int64_t stride) {
  const int64_t pitch = run ? run : a.pitch, most = run ? run : depth;
  Vector<T> sums[rows][vectors];
#pragma GCC unroll 32
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) sums[i][j] = start.rows ? load(start.rows + i * start.stride + j * kLanes<T>) : Vector<T>{};
  for (int64_t begin = 0; begin < depth; begin += most, a.data += rows * pitch) {
    const int64_t terms = run == 1 ? 1 : std::min(most, depth - begin);
    for (int64_t k = 0; k < terms; ++k, b += vectors * kLanes<T>) {
      Vector<T> right[vectors];
#pragma GCC unroll 8
      for (int j = 0; j < vectors; ++j) right[j] = load(b + j * kLanes<T>);
#pragma GCC unroll 32
      for (int i = 0; i < rows; ++i) {
        const Vector<T> factor = broadcast(a.data[i * pitch + k]);
#pragma GCC unroll 8
        for (int j = 0; j < vectors; ++j) sums[i][j] += factor * right[j];
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) store(c + i * stride + j * kLanes<T>, sums[i][j]);
}

template <class T>
using Panel = void (*)(int64_t, Left<T>, const T*, Start<T>, T*, int64_t);
template <class T, int vectors, int run, size_t... i>
constexpr std::array<Panel<T>, sizeof...(i)> panels_of(std::index_sequence<i...>) {
  return {panel<T, i + 1, vectors, run>...};
}

// That of rows - 1.
template <class T, int vectors, int run = kLanes<T>>
inline constexpr auto kPanels = panels_of<T, vectors, run>(std::make_index_sequence<kRowsOf<vectors>>());
// Of as few columns as lanes, and as many rows as panels of tiles have.
template <class T, int run = kLanes<T>>
inline constexpr auto kNarrowPanels = panels_of<T, 1, run>(std::make_index_sequence<kMostRows>());

// Outputs in panels of a tile's columns, the last of which may be narrow.
template <class T>
struct Panels {
  int64_t all;

  int64_t count() const { return (all + kTileColumns<T> - 1) / kTileColumns<T>; }
  int64_t outputs(int64_t panel) const { return std::min<int64_t>(kTileColumns<T>, all - panel * kTileColumns<T>); }
  int64_t width(int64_t panel) const { return outputs(panel) > kLanes<T> ? kTileColumns<T> : kLanes<T>; }
};

// What all rows of panels begin with, by group: numbers that are filled up to whole panels, or nothing.
template <class T>
class Bias {
 public:
  Bias(const T* from, int64_t groups, const Panels<T>& panels) : panels_(panels.count()) {
    if (!from) return;
    numbers_ = zeros<T>(groups * panels_ * kTileColumns<T>);
    for (int64_t group = 0; group < groups; ++group)
      std::copy_n(from + group * panels.all, panels.all, numbers_.get() + group * panels_ * kTileColumns<T>);
  }

  Start<T> start(int64_t group, int64_t panel) const {
    return {numbers_ ? numbers_.get() + (group * panels_ + panel) * kTileColumns<T> : nullptr, 0};
  }

 private:
  const int64_t panels_;
  Memory<T> numbers_;
};

// Rows of `depth` terms, `stride` apart, in runs of a row's terms, as many as lanes; the last run is filled up with zeros.
template <class T>
void in_runs(const T* from, int64_t stride, int64_t rows, int64_t depth, T* to) {
  for (int64_t k = 0; k < depth; k += kLanes<T>)
    for (int64_t i = 0; i < rows; ++i, to += kLanes<T>) store(to, load_some(from + i * stride + k, depth - k));
}

// `depth` rows, `stride` apart, of up to `width` columns, of which `count` are there: to[k * width + j].
template <class T>
void in_rows(const T* from, int64_t stride, int64_t depth, int64_t count, int64_t width, T* to) {
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t j = 0; j < width; j += kLanes<T>, to += kLanes<T>)
      store(to, count > j ? load_some(from + k * stride + j, count - j) : Vector<T>{});
}

// Up to as many rows as lanes, of `depth` terms and `stride` apart, as columns: to[k * pitch + j]. Columns that are missing are zeros.
template <class T>
void in_columns(const T* from, int64_t stride, int64_t rows, int64_t depth, T* to, int64_t pitch) {
  for (int64_t k = 0; k < depth; k += kLanes<T>) {
    const int64_t terms = std::min<int64_t>(kLanes<T>, depth - k);
    Vector<T> block[kLanes<T>];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) block[i] = i < rows ? load_some(from + i * stride + k, terms) : Vector<T>{};
    transpose_square<T>(block);
    for (int64_t i = 0; i < terms; ++i) store(to + (k + i) * pitch, block[i]);
  }
}

}  // namespace jnn
