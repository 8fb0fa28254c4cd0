// Gradients by the weight by Winograd's algorithm: the convolution's transpose in its weight, at the same points.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "winograd.h"

namespace jnn::winograd {

// The numbers at all points of inputs and gradients that are taken in a round, about: they stay in the last cache. Neither this nor the
// number of slabs depends on the threads, and so no sum does.
constexpr int64_t kRound = 1 << 21, kSlabs = 16;
// Tiles that are summed up at a time.
constexpr int64_t kTerms = 128;

// Tiles of 2 by 2 places of the output's gradient.
inline Grid pairs(const Grid& grid) {
  const Ints places = tiles(grid).places;
  Grid found{places, grid.places, places, {1, 2, 2}, {1, 1, 1}, {0, 0, 0}, {}};
  for (int64_t i = 0; i < 4; ++i) found.taps.push_back({{0, i / 2, i % 2}, i});
  return found;
}

// What stands at the points of a tile of gradients, from two values along each axis.
constexpr auto points_of_gradients = [](auto& v) {
  using Value = std::remove_reference_t<decltype(v[0][0])>;
  auto along = [](const Value& a, Value& b, Value& c, Value& d) {
    const Value last = b;
    b = a + last, c = a - last, d = -last;
  };
  for (int i = 0; i < 2; ++i) along(v[i][0], v[i][1], v[i][2], v[i][3]);
  for (int j = 0; j < 4; ++j) along(v[0][j], v[1][j], v[2][j], v[3][j]);
};

// Arrays of one kind, by their points: (points, tiles, channels).
template <class T>
class Points {
 public:
  Points(const Grid& grid, int64_t channels, const Cut& cut, int64_t tiles)
      : layout_(grid, channels, cut),
        channels_(channels),
        pitch_(whole<T>(channels) + kLanes<T>),
        apart_(apart<T>(tiles * pitch_)),
        to_(memory<T>(kPoints * apart_ + kTileColumns<T>)) {}

  int64_t pitch() const { return pitch_; }
  const T* at(int64_t point, int64_t tile) const { return to_.get() + point * apart_ + tile * pitch_; }

  // Those of a slab, whose first tile is the `first`-th.
  template <int window, class ToPoints>
  void fill(const Slab& slab, int64_t first, const T* from, const ToPoints& to_points) {
    const auto input = memory<T>(layout_.numbers());
    layout_.fill(slab, from, channels_, input.get());
    transform<window>(layout_, slab, slab.size[0], channels_, input.get(), to_points, [&](int64_t tile, int64_t c, const auto& v) {
      for (int i = 0; i < kPoints; ++i) store(to_.get() + i * apart_ + (first + tile) * pitch_ + c, v[i / 4][i % 4]);
    });
  }

 private:
  const ChannelsLast<T> layout_;
  const int64_t channels_, pitch_, apart_;
  const Memory<T> to_;
};

// The weights of an output from its sums at the points, `stride` apart.
template <class T>
void at_taps(const T* sums, int64_t stride, int64_t channels, const std::array<int64_t, 9>& taps, T* w) {
  const Vector<T> half = broadcast(T{0.5});
  auto along = [&](const Vector<T>(&v)[4], Vector<T>(&to)[3]) {
    const Vector<T> sum = (v[1] + v[2]) * half;
    to[0] = v[0] + sum, to[1] = (v[1] - v[2]) * half, to[2] = sum + v[3];
  };
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    Vector<T> rows[4][3];
    for (int i = 0; i < 4; ++i) {
      Vector<T> v[4];
      for (int j = 0; j < 4; ++j) v[j] = load(sums + (i * 4 + j) * stride + c);
      along(v, rows[i]);
    }
    T all[9 * kLanes<T>];
    for (int j = 0; j < 3; ++j) {
      Vector<T> v[4], to[3];
      for (int i = 0; i < 4; ++i) v[i] = rows[i][j];
      along(v, to);
      for (int i = 0; i < 3; ++i) store(all + taps[i * 3 + j] * kLanes<T>, to[i]);
    }
    transpose(all, kLanes<T>, 9, std::min<int64_t>(kLanes<T>, channels - c), w + c * 9, 9);
  }
}

// g (N, O, *places) and x (N, C, *in) give w (O, C, *K), for kernels of one depth.
template <class T>
void correlate(Pool& pool, const Channels& c, const Grid& grid, const T* g, const T* x, T* w) {
  const Grid read = tiles(grid), written = pairs(grid);
  const Cut cut = Reach(read).cut(read, c.batch, c.in, kMost, kSlabs);
  const int64_t slabs = cut.slabs(), a_slab = cut.most_images * product(cut.size);
  const Parts rounds(slabs, std::max<int64_t>(1, kRound / (kPoints * a_slab * (c.in + c.out))));
  const int64_t most = (slabs + rounds.parts - 1) / rounds.parts * a_slab;
  Points<T> inputs(read, c.in, cut, most), gradients(written, c.out, cut, most);
  const int64_t width = (c.in + kTileColumns<T> - 1) / kTileColumns<T> * kTileColumns<T>;
  const int64_t a_point = apart<T>(c.out * width);
  const auto sums = memory<T>(kPoints * a_point);
  std::vector<int32_t> offsets(kTerms);
  for (int64_t k = 0; k < kTerms; ++k) offsets[k] = k * inputs.pitch();
  // Tasks are some columns of a point.
  const int64_t tiles = width / kTileColumns<T>, wanted = (kTasksAThread * pool.num_threads() + kPoints - 1) / kPoints;
  const Parts panels(c.out, kMostRows), columns(tiles, (tiles + wanted - 1) / wanted);
  for (int64_t round = 0; round < rounds.parts; ++round) {
    std::vector<int64_t> first{0};
    for (int64_t s = rounds.begin(round); s < rounds.begin(round + 1); ++s) {
      const Slab slab = cut.slab(s);
      first.push_back(first.back() + slab.images * product(slab.size));
    }
    parallel(pool, 2 * rounds.size(round), [&](int64_t task) {
      const int64_t s = task / 2;
      const Slab slab = cut.slab(rounds.begin(round) + s);
      if (task % 2) gradients.template fill<2>(slab, first[s], g, points_of_gradients);
      else inputs.template fill<4>(slab, first[s], x, points_of_inputs);
    });
    parallel(pool, kPoints * columns.parts, [&](int64_t task) {
      const int64_t point = task / columns.parts, part = task % columns.parts;
      for (int64_t k = 0; k < first.back(); k += kTerms)
        for (int64_t j = columns.begin(part); j < columns.begin(part + 1); ++j)
          for (int64_t r = 0; r < panels.parts; ++r)
            jnn::kTiles<T>[panels.size(r) - 1](std::min(kTerms, first.back() - k), gradients.at(point, k) + panels.begin(r),
                                               gradients.pitch(), inputs.at(point, k) + j* kTileColumns<T>, offsets.data(),
                                               sums.get() + point* a_point + panels.begin(r)* width + j* kTileColumns<T>, width,
                                               round > 0 || k > 0, nullptr);
    });
  }
  const auto taps = indices(grid);
  parallel(pool, panels.parts, [&](int64_t r) {
    for (int64_t o = panels.begin(r); o < panels.begin(r + 1); ++o)
      at_taps(sums.get() + o * width, a_point, c.in, taps[0], w + o * c.in * 9);
  });
}

}  // namespace jnn::winograd
