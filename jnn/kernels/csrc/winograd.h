// Convolutions with kernels of 3 by 3 in steps of 1 by Winograd's F(2 x 2, 3 x 3): 16 products give 4 outputs, not 36.
//
// Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015. A third dimension, of any kernel, is summed up as
// channels are.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "slabs.h"
#include "vector.h"

namespace jnn::winograd {

constexpr int kPoints = 16;
// So many rows of tiles are taken at a time.
constexpr int64_t kPanels = 5;
// Of the weights at a point, and of tiles side by side.
constexpr int64_t kFewWeights = 1 << 12, kTilesAtOnce = 4;

// Whether the taps are 3 by 3 neighbours, as often as there are depths.
inline bool fits(const Grid& grid) {
  const Ints one{1, 1, 1};
  if (grid.in_step != one || grid.out_step != one || grid.taps.size() % 9) return false;
  const Ints low = grid.low();
  return std::all_of(grid.taps.begin(), grid.taps.end(),
                     [&](const Tap& tap) { return tap.offset[1] - low[1] < 3 && tap.offset[2] - low[2] < 3; });
}

// Tiles of 2 by 2 outputs, each of which reads 4 by 4 inputs at each depth of the kernel.
inline Grid tiles(const Grid& grid) {
  const Ints low = grid.low(), places{grid.places[0], (grid.places[1] + 1) / 2, (grid.places[2] + 1) / 2};
  Grid found{places, grid.in, places, {1, 2, 2}, {1, 1, 1}, {0, 0, 0}, {}};
  for (const int64_t depth : grid.depths())
    for (int64_t i = 0; i < kPoints; ++i) found.taps.push_back({{depth, low[1] + i / 4, low[2] + i % 4}, i});
  return found;
}

// What stands at the points of a tile, from four values along each axis: first along columns, then along rows.
template <class T, class Value>
inline void to_points(Value (&v)[4][4]) {
  auto along = [](Value& a, Value& b, Value& c, Value& d) {
    const Value p = a - c, q = b + c, r = c - b, s = b - d;
    a = p, b = q, c = r, d = s;
  };
  for (auto& row : v) along(row[0], row[1], row[2], row[3]);
  for (int j = 0; j < 4; ++j) along(v[0][j], v[1][j], v[2][j], v[3][j]);
}

// Kernels at the points, in the order in which tiles of products read them: by point, by rows of outputs, by channel and depth.
template <class T>
Memory<T> at_points(ffi::ThreadPool& pool, const Channels& c, const Grid& grid, const T* w, const Parts& rows) {
  const Ints low = grid.low();
  const auto depths = grid.depths();
  const int64_t terms = c.in * depths.size();
  auto to = memory<T>(kPoints * c.out * terms);
  std::vector<std::array<int64_t, 9>> taps(depths.size());
  for (const Tap& tap : grid.taps) {
    const int64_t depth = std::find(depths.begin(), depths.end(), tap.offset[0]) - depths.begin();
    taps[depth][(tap.offset[1] - low[1]) * 3 + tap.offset[2] - low[2]] = tap.index;
  }
  parallel(pool, rows.parts, [&](int64_t r) {
    const int64_t begin = rows.begin(r), count = rows.size(r);
    for (int64_t k = 0; k < terms; ++k)
      for (int64_t i = 0; i < count; ++i) {
        const T* from = w + (begin + i) * c.out_stride + k / depths.size() * c.in_stride;
        const auto& at = taps[k % depths.size()];
        T half[4][3];
        for (int j = 0; j < 3; ++j) {
          const T a = from[at[j]], b = from[at[3 + j]], d = from[at[6 + j]];
          half[0][j] = a, half[1][j] = (a + b + d) / 2, half[2][j] = (a - b + d) / 2, half[3][j] = d;
        }
        T* out = to.get() + begin * terms + k * count + i;
        for (int p = 0; p < 4; ++p) {
          const T a = half[p][0], b = half[p][1], d = half[p][2];
          const T points[4] = {a, (a + b + d) / 2, (a - b + d) / 2, d};
          for (int q = 0; q < 4; ++q) out[(p * 4 + q) * c.out * terms] = points[q];
        }
      }
  });
  return to;
}

// Neighbouring tiles of a row, the `at`-th ones of a block.
struct Run {
  int64_t image, depth, row, column, count, at;
};

// Those of a slab from the place `begin` to `end`, as a layout counts places.
template <class T>
std::vector<Run> runs(const slabs::Layout<T>& layout, const Slab& slab, int64_t begin, int64_t end) {
  std::vector<Run> found;
  for (int64_t at = begin; at < end;) {
    const int64_t image = at / layout.image(), depth = at % layout.image() / layout.depth(), row = at % layout.depth() / layout.row();
    const int64_t column = at % layout.row(), count = std::min({slab.size[2] - column, end - at, int64_t{kLanes<T>}});
    const bool inside = depth < slab.size[0] && row < slab.size[1] && count > 0;
    if (inside) found.push_back({slab.image + image, slab.begin[0] + depth, slab.begin[1] + row, column, count, at - begin});
    at += inside ? count : layout.row() - column;
  }
  return found;
}

// The outputs of tiles, (2, 2) each, of a channel of y (N, channels, *sizes), from what stands at their points, `stride` apart.
template <class T>
void write(const T* points, int64_t stride, const std::vector<Run>& runs, const Ints& sizes, int64_t channels, T* y) {
  constexpr int64_t lanes = kLanes<T>;
  for (const Run& run : runs) {
    Vector<T> half[2][4];
    for (int j = 0; j < 4; ++j) {
      const T* at = points + run.at + j * stride;
      const Vector<T> a = load(at), b = load(at + 4 * stride), c = load(at + 8 * stride), d = load(at + 12 * stride);
      half[0][j] = a + b + c, half[1][j] = b - c - d;
    }
    const int64_t count = std::min(2 * run.count, sizes[2] - 2 * run.column);
    T* image = y + (run.image * channels * sizes[0] + run.depth) * sizes[1] * sizes[2];
    for (int64_t i = 0, row = 2 * run.row; i < 2 && row < sizes[1]; ++i, ++row) {
      const auto [a, b, c, d] = half[i];
      const auto [low, high] = interleaved<T>(a + b + c, b - c - d);
      T* to = image + row * sizes[2] + 2 * run.column;
      store_masked(to, low, between(0, std::min(count, lanes)), 1);
      if (count > lanes) store_masked(to + lanes, high, between(0, count - lanes), 1);
    }
  }
}

template <class T>
void convolve(ffi::ThreadPool& pool, const Channels& c, const Grid& grid, const T* x, const T* w, T* y) {
  const Grid tiled = tiles(grid);
  const int64_t width = kTileColumns<T>, terms = c.in * grid.depths().size();
  const Parts rows(c.out, kMostRows), blocks(rows.parts, kPanels);
  const auto weights = at_points(pool, c, grid, w, rows);
  const slabs::Layout<T> layout(tiled, c.batch, c.in, slabs::kMost, 2 * pool.num_threads());
  const auto reads = layout.offsets(c.in);
  std::vector<int32_t> offsets(terms);
  for (int64_t k = 0; k < terms; ++k) offsets[k] = k * width;
  // So many numbers of weights are read for a chunk of places that chunks must be larger the more there are.
  const int64_t chunk = std::clamp(terms * c.out / kFewWeights, int64_t{1}, kTilesAtOnce) * width;
  // Powers of two would put all points of a tile at one place of the cache.
  const int64_t pitch = terms * chunk + 3 * kLanes<T>;
  parallel(pool, layout.cut().slabs(), [&](int64_t task) {
    const Slab slab = layout.cut().slab(task);
    const auto input = memory<T>(c.in * layout.channel() + layout.kSlack + chunk), points = memory<T>(kPoints * pitch);
    const auto sums = memory<T>(kPoints * kPanels * kMostRows * chunk);
    layout.fill(slab, x, c.in, c.in, input.get());
    for (int64_t at = 0, length = layout.whole(slab); at < length; at += chunk) {
      const int64_t filled = std::min(chunk, (length - at + width - 1) / width * width);
      for (int64_t k = 0; k < terms; ++k)
        for (int64_t lane = 0; lane < filled; lane += kLanes<T>) {
          Vector<T> v[4][4];
          for (int i = 0; i < kPoints; ++i) v[i / 4][i % 4] = load(input.get() + at + lane + reads[k * kPoints + i]);
          to_points<T>(v);
          T* to = points.get() + lane / width * terms * width + k * width + lane % width;
          for (int i = 0; i < kPoints; ++i) store(to + i * pitch, v[i / 4][i % 4]);
        }
      const auto written = runs(layout, slab, at, std::min(at + chunk, length));
      for (int64_t b = 0; b < blocks.parts; ++b) {
        const int64_t begin = rows.begin(blocks.begin(b)), end = rows.begin(blocks.begin(b + 1)), stride = (end - begin) * chunk;
        for (int64_t i = 0; i < kPoints; ++i)
          for (int64_t r = blocks.begin(b); r < blocks.begin(b + 1); ++r)
            for (int64_t t = 0; t < filled; t += width)
              kTiles<T>[rows.size(r) - 1](terms, weights.get() + (i* c.out + rows.begin(r))* terms, points.get() + i* pitch + t* terms,
                                          offsets.data(), sums.get() + i* stride + (rows.begin(r) - begin)* chunk + t, chunk, false);
        for (int64_t o = begin; o < end; ++o)
          write(sums.get() + (o - begin) * chunk, stride, written, grid.out, c.out, y + o * product(grid.out));
      }
    }
  });
}

}  // namespace jnn::winograd
