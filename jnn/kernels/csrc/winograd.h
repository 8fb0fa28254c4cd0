// Convolutions with kernels of 3 by 3 in steps of 1 by Winograd's F(2 x 2, 3 x 3): 16 products give 4 outputs, not 36.
//
// Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015. Channels are last throughout, the lanes of all
// transformations, so that tiles follow each other through all images whatever their size. A third dimension, of any kernel, is summed
// up as channels are.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "channels_last.h"
#include "factors.h"
#include "geometry.h"
#include "matrices.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "tasks.h"
#include "transpose.h"
#include "vector.h"
#include "weights.h"

namespace jnn::winograd {

constexpr int kPoints = 16;
// The point that all four outputs have once.
constexpr int kCentre = 5;
// The most numbers of a slab's input: what stands at its points is up to four times as much.
constexpr int64_t kMost = 1 << 15;
// Input channels whose weights are put in order at a time.
constexpr int64_t kChannelsAtOnce = 32;

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

// How far points are apart in memory: powers of two would put all of them at one place of the cache.
template <class T>
int64_t apart(int64_t numbers) {
  return whole<T>(numbers) + 3 * kLanes<T>;
}

// What stands at the points of a tile, from four values along each axis: first along columns, then along rows.
constexpr auto points_of_inputs = [](auto& v) {
  using Value = std::remove_reference_t<decltype(v[0][0])>;
  auto along = [](Value& a, Value& b, Value& c, Value& d) {
    const Value p = a - c, q = b + c, r = c - b, s = b - d;
    a = p, b = q, c = r, d = s;
  };
  for (auto& row : v) along(row[0], row[1], row[2], row[3]);
  for (int j = 0; j < 4; ++j) along(v[0][j], v[1][j], v[2][j], v[3][j]);
};

// Calls use(tile, channel, v) with what stands at the points of each tile of a slab, `depths` planes an image, a vector of channels at a
// time. to_points(v) makes that of the `window` by `window` values of a tile.
template <int window, class T, class ToPoints, class Use>
void transform(const ChannelsLast<T>& layout, const Slab& slab, int64_t depths, int64_t channels, const T* input, const ToPoints& to_points,
               const Use& use) {
  int64_t tile = 0;
  for (int64_t plane = 0; plane < slab.images * depths; ++plane)
    for (int64_t y = 0; y < slab.size[1]; ++y)
      for (int64_t x = 0; x < slab.size[2]; ++x, ++tile) {
        const T* from = input + plane / depths * layout.image() + layout.at(plane % depths, 2 * y, 2 * x);
        for (int64_t c = 0; c < channels; c += kLanes<T>) {
          Vector<T> v[4][4];
          for (int i = 0; i < window; ++i)
            for (int j = 0; j < window; ++j) v[i][j] = load(from + c + layout.at(0, i, j));
          to_points(v);
          use(tile, c, v);
        }
      }
}

// The indices of the 3 by 3 taps, by depth.
inline std::vector<std::array<int64_t, 9>> indices(const Grid& grid) {
  const Ints low = grid.low();
  const auto depths = grid.depths();
  std::vector<std::array<int64_t, 9>> found(depths.size());
  for (const Tap& tap : grid.taps) {
    const int64_t depth = std::find(depths.begin(), depths.end(), tap.offset[0]) - depths.begin();
    found[depth][(tap.offset[1] - low[1]) * 3 + tap.offset[2] - low[2]] = tap.index;
  }
  return found;
}

// Kernels at the points, as panels of `width` outputs read them: by point, by depth, by channel.
template <class T>
class Weights {
 public:
  Weights(const Channels& c, const Grid& grid) : c_(c), taps_(indices(grid)), depths_(taps_.size()) {}

  int64_t terms() const { return depths_ * c_.in; }
  int64_t panel() const { return kPoints * terms() * kTileColumns<T>; }

  // Of outputs from `begin` on.
  void fill(const T* w, int64_t begin, int64_t outputs, int64_t width, T* to) const {
    const auto all = zeros<T>(kChannelsAtOnce * c_.kernel() * width);
    for (int64_t channel = 0; channel < c_.in; ++channel) {
      const int64_t within = channel % kChannelsAtOnce, count = std::min(kChannelsAtOnce, c_.in - channel);
      if (!within) by_tap(c_, w + begin * c_.out_stride, channel, count, outputs, all.get(), width);
      for (int64_t depth = 0; depth < depths_; ++depth)
        for (int64_t j = 0; j < width; j += kLanes<T>)
          at_points(all.get() + within * c_.kernel() * width + j, width, taps_[depth], to + (depth * c_.in + channel) * width + j,
                    terms() * width);
    }
  }

 private:
  static void at_points(const T* from, int64_t pitch, const std::array<int64_t, 9>& taps, T* to, int64_t stride) {
    const Vector<T> half = broadcast(T{0.5});
    Vector<T> rows[4][3];
    for (int j = 0; j < 3; ++j) {
      const Vector<T> a = load(from + taps[j] * pitch), b = load(from + taps[3 + j] * pitch), d = load(from + taps[6 + j] * pitch);
      rows[0][j] = a, rows[1][j] = (a + b + d) * half, rows[2][j] = (a - b + d) * half, rows[3][j] = d;
    }
    for (int p = 0; p < 4; ++p) {
      const Vector<T> a = rows[p][0], b = rows[p][1], d = rows[p][2];
      const Vector<T> points[4] = {a, (a + b + d) * half, (a - b + d) * half, d};
      for (int q = 0; q < 4; ++q) store(to + (p * 4 + q) * stride, points[q]);
    }
  }

  const Channels& c_;
  const std::vector<std::array<int64_t, 9>> taps_;
  const int64_t depths_;
};

template <class T>
class Convolution {
 public:
  Convolution(Pool& pool, const Channels& c, const Grid& grid, const T* bias)
      : c_(c),
        grid_(grid),
        tiled_(tiles(grid)),
        weights_(c, grid),
        depths_(grid.depths()),
        cut_(Reach(tiled_).cut(tiled_, c.batch, c.in, kMost, kTasksAThread * pool.num_threads())),
        layout_(tiled_, c.in, cut_),
        panels_{c.out},
        bias_(bias, 1, panels_),
        joined_(depths_.size() == 1),
        past_(past_cache<T>(c.batch * c.out * product(grid.out))),
        pitch_(apart<T>(most_tiles() * channels())) {}

  int64_t groups() const { return 1; }
  int64_t slabs() const { return cut_.slabs(); }
  int64_t panels() const { return panels_.count(); }
  int64_t left() const { return kPoints * pitch_; }
  int64_t right() const { return weights_.panel(); }
  bool many() const { return slabs() * most_tiles() > c_.out; }

  // Kernels of a panel at the points.
  void order(int64_t panel, int64_t, const T* w, T* to) const {
    weights_.fill(w, panel * kTileColumns<T>, panels_.outputs(panel), panels_.width(panel), to);
  }

  // What stands at the points of a slab's tiles, by rows of products in runs of a row's channels.
  void gather(int64_t at, int64_t, const T* x, T* to) const {
    const Slab slab = cut_.slab(at);
    const auto input = memory<T>(layout_.numbers());
    layout_.fill(slab, x, c_.in, input.get());
    const int64_t run = run_of(slab);
    const Parts rows(run, kMostRows);
    int64_t part = 0;
    auto store_points = [&](int64_t tile, int64_t c, const Vector<T>(&v)[4][4]) {
      const int64_t within = tile % run;
      if (within == 0 && c == 0) part = 0;
      if (within == rows.begin(part + 1)) ++part;
      T* out = to + (tile - within + rows.begin(part)) * channels() + c * rows.size(part) + (within - rows.begin(part)) * kLanes<T>;
      for (int i = 0; i < kPoints; ++i) store(out + i * pitch_, v[i / 4][i % 4]);
    };
    transform<4>(layout_, slab, planes_read(slab), c_.in, input.get(), points_of_inputs, store_points);
  }

  // The outputs of a slab, of some panels.
  void multiply(int64_t at, int64_t, const T* points, int64_t begin, int64_t end, const T* factors, T* y) const {
    const Slab slab = cut_.slab(at);
    const int64_t run = run_of(slab), pitch = apart<T>(run * kTileColumns<T>), planes = slab.images * slab.size[0];
    const auto sums = memory<T>(kPoints * pitch), block = memory<T>(4 * run * kTileColumns<T>);
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t plane = 0; plane < planes; plane += joined_ ? planes : 1) {
        const T* own = factors + (panel - begin) * weights_.panel();
        const int64_t width = panels_.width(panel);
        const auto& kernels = width > kLanes<T> ? kPanels<T, kTileVectors> : kNarrowPanels<T>;
        const Parts rows(run, kMostRows);
        for (int64_t i = 0; i < kPoints; ++i)
          for (int64_t r = 0; r < rows.parts; ++r)
            for (size_t d = 0; d < depths_.size(); ++d) {
              T* to = sums.get() + i * pitch + rows.begin(r) * width;
              const int64_t read = joined_ ? 0 : plane / slab.size[0] * planes_read(slab) + plane % slab.size[0] + depths_[d] - depths_[0];
              const Start<T> first = i == kCentre ? bias_.start(0, panel) : Start<T>{}, start = d > 0 ? Start<T>{to, width} : first;
              kernels[rows.size(r) - 1](c_.in, points + i * pitch_ + (read * run + rows.begin(r)) * channels(),
                                        own + (i * depths_.size() + d) * c_.in * width, start, to, width);
            }
        write(slab, plane, joined_ ? planes : 1, panel, sums.get(), pitch, block.get(), y);
      }
  }

 private:
  int64_t channels() const { return whole<T>(c_.in); }
  int64_t most_tiles() const { return cut_.most_images * layout_.input()[0] * cut_.size[1] * cut_.size[2]; }
  int64_t planes_read(const Slab& slab) const { return slab.size[0] + layout_.input()[0] - cut_.size[0]; }
  // Tiles that a product may run through: those of a plane or, where the kernel has one depth, of all planes of a slab.
  int64_t run_of(const Slab& slab) const { return (joined_ ? slab.images * slab.size[0] : 1) * slab.size[1] * slab.size[2]; }

  // Planes of a panel's outputs, (2, 2) for each tile, from what stands at the points.
  void write(const Slab& slab, int64_t plane, int64_t planes, int64_t panel, const T* sums, int64_t pitch, T* block, T* y) const {
    const int64_t width = panels_.width(panel), columns = grid_.out[2], first = 2 * slab.begin[1];
    const int64_t rows = std::min(2 * slab.size[1], grid_.out[1] - first), a_channel = product(grid_.out);
    for (int64_t p = 0, tile = 0; p < planes; ++p)
      for (int64_t ty = 0; ty < slab.size[1]; ++ty)
        for (int64_t tx = 0; tx < slab.size[2]; ++tx, ++tile)
          for (int64_t j = 0; j < width; j += kLanes<T>) {
            Vector<T> half[2][4];
            for (int q = 0; q < 4; ++q) {
              const T* at = sums + q * pitch + tile * width + j;
              const Vector<T> a = load(at), b = load(at + 4 * pitch), c = load(at + 8 * pitch), d = load(at + 12 * pitch);
              half[0][q] = a + b + c, half[1][q] = b - c - d;
            }
            for (int64_t i = 0; i < 2 && 2 * ty + i < rows; ++i) {
              const auto [a, b, c, d] = half[i];
              T* to = block + ((p * rows + 2 * ty + i) * columns + 2 * tx) * width + j;
              store(to, a + b + c);
              if (2 * tx + 1 < columns) store(to + width, b - c - d);
            }
          }
    for (int64_t p = 0; p < planes; ++p) {
      const int64_t image = slab.image + (plane + p) / slab.size[0], depth = slab.begin[0] + (plane + p) % slab.size[0];
      T* to = y + (image * c_.out + panel * kTileColumns<T>)*a_channel + (depth * grid_.out[1] + first) * columns;
      transpose(block + p * rows * columns * width, width, rows * columns, panels_.outputs(panel), to, a_channel, 1, past_);
    }
  }

  const Channels& c_;
  const Grid& grid_;
  const Grid tiled_;
  const Weights<T> weights_;
  const std::vector<int64_t> depths_;
  const Cut cut_;
  const ChannelsLast<T> layout_;
  const Panels<T> panels_;
  const Bias<T> bias_;
  const bool joined_, past_;
  const int64_t pitch_;
};

template <class T>
void convolve(Pool& pool, const Channels& c, const Grid& grid, const T* x, const T* w, const T* bias, T* y) {
  run(pool, Convolution<T>(pool, c, grid, bias), x, w, y);
}

}  // namespace jnn::winograd
