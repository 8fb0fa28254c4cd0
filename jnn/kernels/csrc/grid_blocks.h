// Samples at the points of grids, and their gradients, of planes as they stand: block by block of points, whose taps stay in the cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "grid.h"
#include "lanes.h"
#include "parallel.h"
#include "products.h"
#include "sampling.h"
#include "tasks.h"
#include "vector.h"

namespace jnn {

template <class T, size_t... i>
inline Vector<T> picked(const T* from, const int32_t* at, std::index_sequence<i...>) {
  return Vector<T>{(at[i] < 0 ? T{0} : from[at[i]])...};
}

// from[at], and 0 where that is less than 0.
template <class T>
inline Vector<T> picked(const T* from, const int32_t* at) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512i index = _mm512_loadu_si512(at);
    return (Vector<T>)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), ~_mm512_movepi32_mask(index), index, from, 4);
  }
#endif
  return picked(from, at, std::make_index_sequence<kLanes<T>>());
}

// Some points of a sample, from `first` on: of each tap the elements, -1 where there is none, and the weights. The numbers after the last
// point, up to a whole vector, are of no account.
template <class T, int taps, int axes>
struct PointsBlock {
  static constexpr int kTaps = Vectors<T, taps, axes>::kTaps, kVectors = 64 / kTaps, kSize = kVectors * kLanes<T>;
  int64_t n, first, places;
  int32_t at[kTaps][kSize];
  T weight[kTaps][kSize];

  PointsBlock(const Grid& grid, const T* points, int64_t n, int64_t first)
      : n(n), first(first), places(std::min<int64_t>(kSize, grid.places - first)) {
    for (int64_t p = 0; p < places; p += kLanes<T>) {
      const Vectors<T, taps, axes> found(grid, points + (n * grid.places + first + p) * axes, std::min<int64_t>(kLanes<T>, places - p));
#pragma GCC unroll 16
      for (int t = 0; t < kTaps; ++t) {
        store_narrow<T>(at[t] + p, found.index(t), kLanes<T>);
        if constexpr (taps > 1) store(weight[t] + p, found.weight(t));
      }
    }
  }

  // Of the points from p on, as many as a vector holds: run(p, points).
  template <class Run>
  void each(const Run& run) const {
    for (int64_t p = 0; p < places; p += kLanes<T>) run(p, std::min<int64_t>(kLanes<T>, places - p));
  }
  sampling::Terms<T> terms() const {
    return {{nullptr, kTaps, 1, kSize}, at[0], taps == 1 ? nullptr : weight[0], std::numeric_limits<int32_t>::min()};
  }
  Vector<T> weight_of(int t, int64_t p) const {
    if constexpr (taps == 1) return broadcast(T{1});
    else return load(weight[t] + p);
  }
};

// Calls run(block) for blocks of the points of all samples, with work for `channels`.
template <class T, int taps, int axes, class Run>
void by_points_block(Pool& pool, const Grid& grid, int64_t channels, const T* points, const Run& run) {
  using Block = PointsBlock<T, taps, axes>;
  const int64_t blocks = (grid.places + Block::kSize - 1) / Block::kSize;
  by_task(pool, grid.batch * blocks, std::min<int64_t>(grid.places, Block::kSize) * Block::kTaps * (channels + 4), 1,
          [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) run(Block(grid, points, i / blocks, i % blocks * Block::kSize));
          });
}

// x is (batch, channels, *sizes), y (batch, channels, places).
template <int taps, int axes, class T>
void sample_by_block(Pool& pool, const Grid& grid, int64_t channels, const T* x, const T* points, T* y) {
  by_points_block<T, taps, axes>(pool, grid, channels, points, [&](const auto& block) {
    for (int64_t c = block.n * channels; c < (block.n + 1) * channels; ++c) {
      const T* plane = x + c * grid.count();
      T* to = y + c * grid.places + block.first;
      block.each([&](int64_t p, int64_t places) {
        Vector<T> sum{};
#pragma GCC unroll 16
        for (int t = 0; t < block.kTaps; ++t) sum += block.weight_of(t, p) * picked(plane, block.at[t] + p);
        store_some(to + p, sum, places);
      });
    }
  });
}

// The gradient by x for g, the one by y.
template <int taps, int axes, class T>
void slopes_by_image(Pool& pool, const Grid& grid, int64_t channels, const T* g, const T* points, T* slopes) {
  using Block = PointsBlock<T, taps, axes>;
  const int64_t count = grid.count();
  // A task has whole planes: what one adds to a plane another would not see.
  const Parts each(channels, std::clamp<int64_t>(grid.batch * channels / pool.num_threads(), 1, sampling::kPlanes));
  parallel(pool, grid.batch * each.parts, [&](int64_t task) {
    const int64_t n = task / each.parts, begin = n * channels + each.begin(task % each.parts), end = begin + each.size(task % each.parts);
    std::fill(slopes + begin * count, slopes + end * count, T{0});
    for (int64_t first = 0; first < grid.places; first += Block::kSize) {
      const Block block(grid, points, n, first);
      const sampling::Rows<const T> from{g + begin * grid.places + first, end - begin, grid.places};
      const sampling::Rows<T> to{slopes + begin * count, end - begin, count};
      sampling::by_planes(end - begin, [&](auto planes, int64_t c) {
        sampling::scatter_several<planes>(block.terms(), block.places, from.from(c), to.from(c));
      });
    }
  });
}

// The gradient by the points.
template <int taps, int axes, class T>
void slopes_by_points(Pool& pool, const Grid& grid, int64_t channels, const T* g, const T* x, const T* points, T* slopes) {
  by_points_block<T, taps, axes>(pool, grid, channels, points, [&](const auto& block) {
    constexpr int kTaps = std::decay_t<decltype(block)>::kTaps;
    block.each([&](int64_t p, int64_t places) {
      Vector<T> by_weight[kTaps] = {};
      for (int64_t c = block.n * channels; c < (block.n + 1) * channels; ++c) {
        const Vector<T> slope = load_some(g + c * grid.places + block.first + p, places);
#pragma GCC unroll 16
        for (int t = 0; t < kTaps; ++t) by_weight[t] += slope * picked(x + c * grid.count(), block.at[t] + p);
      }
      const int64_t begin = (block.n * grid.places + block.first + p) * axes;
      const Vectors<T, taps, axes> along(grid, points + begin, places);
      Vector<T> sums[axes] = {};
#pragma GCC unroll 16
      for (int t = 0; t < kTaps; ++t)
        for (int a = 0; a < axes; ++a) sums[a] += by_weight[t] * along.slope(t, a);
      along.store_points(sums, places, slopes + begin);
    });
  });
}

}  // namespace jnn
