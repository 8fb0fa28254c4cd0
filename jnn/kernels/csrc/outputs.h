// Convolutions whose lanes are outputs: products of patches, gathered from inputs that have their channels last, with weights.
//
// Patches are whole runs of channels, whatever the steps and however small the images; and what is written has channels last as well, so
// that all phases of a gradient by the input are written at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "channels_last.h"
#include "factors.h"
#include "geometry.h"
#include "matrices.h"
#include "memory.h"
#include "products.h"
#include "tasks.h"
#include "transpose.h"
#include "vector.h"
#include "weights.h"

namespace jnn::outputs {

// The most numbers of a slab's patches, which stay in the cache with the weights of some outputs.
constexpr int64_t kMost = 1 << 16;
constexpr int64_t kChannelsAtOnce = 32;

// Neighbours that a place reads, `length` numbers from the first on, which stand at `at` among all that it reads, and their depth and row.
struct Run {
  int64_t from, length, at, depth, row;
};

// The outputs that are one phase of the stride apart, and what they read.
struct Phase {
  Grid grid;
  std::vector<Run> runs;
  int64_t depth, weights;
};

template <class T>
class Convolution {
 public:
  // The grids of all phases, which read the same inputs.
  Convolution(Pool& pool, const Channels& c, const std::vector<Grid>& grids, const T* bias)
      : one_(c),
        share_(c.joined(kLanes<T>)),
        c_(of(c, share_)),
        all_(united(grids)),
        cut_(cut(pool, c_, all_)),
        layout_(all_, c_.in, cut_),
        panels_{c_.out},
        bias_(bias, c_.groups, panels_),
        past_(past_cache<T>(c.batch * c.groups * c.out * product(all_.out))) {
    for (const Grid& grid : grids) add(grid);
  }

  int64_t groups() const { return c_.groups; }
  int64_t slabs() const { return cut_.slabs(); }
  int64_t panels() const { return panels_.count(); }
  int64_t left() const { return most_places() * depth_; }
  int64_t right() const { return panel_; }
  bool many() const { return slabs() * most_places() > c_.out; }

  // The weights of a group's panel, by phase and by what its places read.
  void order(int64_t panel, int64_t group, const T* w, T* to) const {
    const int64_t width = panels_.width(panel), kernel = c_.kernel(), first = panel * kTileColumns<T>;
    const auto all = zeros<T>(kChannelsAtOnce * kernel * width);
    for (int64_t begin = 0; begin < c_.in; begin += kChannelsAtOnce) {
      const int64_t count = std::min(kChannelsAtOnce, c_.in - begin);
      panel_by_tap(w, group, first, width, begin, count, all.get());
      for (const Phase& phase : phases_) {
        T* out = to + phase.weights / kTileColumns<T> * width + begin * width;
        for (const Tap& tap : phase.grid.taps) {
          for (int64_t i = 0; i < count; ++i) copy_short(all.get() + (i * kernel + tap.index) * width, width, out + i * width);
          out += c_.in * width;
        }
      }
    }
  }

  // What the places of a slab read of a group, by phase, by rows of products in runs of a row's terms.
  void gather(int64_t at, int64_t group, const T* x, T* to) const {
    const Slab slab = cut_.slab(at);
    const auto input = memory<T>(layout_.numbers());
    layout_.fill(slab, x + group * c_.in * product(all_.in), c_.in * c_.groups, input.get());
    const Reach& reach = layout_.reach();
    const int64_t places = slab.images * product(slab.size);
    const Parts rows(places, kMostRows);
    for (const Phase& phase : phases_) {
      for (int64_t r = 0; r < rows.parts; ++r) {
        const auto [first, last] = terms(slab, phase, rows.begin(r), rows.begin(r + 1));
        for (int64_t i = 0; i < rows.size(r); ++i) {
          int64_t image;
          const Ints place = place_of(slab, rows.begin(r) + i, &image);
          const T* from = input.get() + image * layout_.image() +
                          layout_.at(place[0] * reach.step(0), place[1] * reach.step(1), place[2] * reach.step(2));
          T* row = to + rows.begin(r) * whole<T>(phase.depth) + i * kLanes<T>;
          for (const Run& run : phase.runs)
            if (run.at + run.length > first && run.at < last) copy(from + run.from, run.length, row, rows.size(r), run.at);
        }
      }
      to += places * whole<T>(phase.depth);
    }
  }

  // The outputs of a slab, of some panels of a group.
  void multiply(int64_t at, int64_t group, const T* patches, int64_t begin, int64_t end, const T* factors, T* y) const {
    const Slab slab = cut_.slab(at);
    const int64_t places = slab.images * product(slab.size), a_channel = product(all_.out);
    const Parts rows(places, kMostRows);
    const auto sums = memory<T>(kMostRows * kTileColumns<T>), block = memory<T>(product(all_.out_step) * places * kTileColumns<T>);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t width = panels_.width(panel);
      const auto& kernels = width > kLanes<T> ? kPanels<T, kTileVectors> : kNarrowPanels<T>;
      const T* own = factors + (panel - begin) * panel_;
      const T* left = patches;
      for (const Phase& phase : phases_) {
        const T* right = own + phase.weights / kTileColumns<T> * width;
        for (int64_t r = 0; r < rows.parts; ++r) {
          const auto [first, last] = terms(slab, phase, rows.begin(r), rows.begin(r + 1));
          kernels[rows.size(r) - 1](last - first, left + rows.begin(r) * whole<T>(phase.depth) + first * rows.size(r),
                                    right + first * width, bias_.start(group, panel), sums.get(), width);
          place(slab, phase.grid, rows.begin(r), rows.size(r), width, sums.get(), block.get());
        }
        left += places * whole<T>(phase.depth);
      }
      T* first = y + (group * c_.out + panel * kTileColumns<T>)*a_channel;
      write(all_, slab, block.get(), width, panels_.outputs(panel), first, c_.groups * c_.out * a_channel, a_channel, past_);
    }
  }

 private:
  // What channels joined groups have.
  static Channels of(Channels c, int64_t share) {
    c.groups /= share, c.in *= share, c.out *= share;
    return c;
  }

  // The weights of `count` channels, from `begin` on, for a panel that begins at the output `first`: between those of joined groups are
  // zeros.
  void panel_by_tap(const T* w, int64_t group, int64_t first, int64_t width, int64_t begin, int64_t count, T* to) const {
    w += group * share_ * c_.group_stride;
    if (share_ == 1) return by_tap(one_, w + first * c_.out_stride, begin, count, std::min(width, c_.out - first), to, width);
    const int64_t a_channel = c_.kernel() * width;
    for (int64_t channel = begin; channel < begin + count; ++channel, to += a_channel) {
      const int64_t own = channel / one_.in, low = std::max(first, own * one_.out), high = std::min(first + width, (own + 1) * one_.out);
      std::fill_n(to, a_channel, T{0});
      if (low >= high) continue;
      const T* from = w + own * c_.group_stride + (low - own * one_.out) * c_.out_stride;
      by_tap(one_, from, channel % one_.in, 1, high - low, to + low - first, width);
    }
  }

  static Cut cut(Pool& pool, const Channels& c, const Grid& all) {
    auto numbers = [&](const Ints& size) { return product(size) * c.in * static_cast<int64_t>(all.taps.size()); };
    return Cut(all.places, c.batch, std::max(kMost, numbers({1, 1, all.places[2]})),
               (kTasksAThread * pool.num_threads() + c.groups - 1) / c.groups, numbers);
  }

  void add(const Grid& grid) {
    Phase phase{grid, {}, 0, panel_};
    std::sort(phase.grid.taps.begin(), phase.grid.taps.end(), [](const Tap& a, const Tap& b) { return a.offset < b.offset; });
    for (const Tap& tap : phase.grid.taps) {
      const Reach& reach = layout_.reach();
      const int64_t from = layout_.at(tap.offset[0] - reach.low(0), tap.offset[1] - reach.low(1), tap.offset[2] - reach.low(2));
      // Rows are apart even where they follow each other: some may be outside the image.
      const auto follows = [&](const Run& last) {
        return tap.offset[0] == last.depth && tap.offset[1] == last.row && from == last.from + last.length;
      };
      if (phase.runs.empty() || !follows(phase.runs.back())) phase.runs.push_back({from, 0, phase.depth, tap.offset[0], tap.offset[1]});
      phase.runs.back().length += c_.in, phase.depth += c_.in;
    }
    panel_ += phase.depth * kTileColumns<T>;
    depth_ += whole<T>(phase.depth);
    phases_.push_back(phase);
  }

  int64_t most_places() const { return cut_.most_images * product(cut_.size); }

  // Places of a slab are counted by depth, by row, by image, by column: those of a product have few rows, and of what these read
  // nothing may be inside the image.
  Ints place_of(const Slab& slab, int64_t place, int64_t* image) const {
    const int64_t row = place / slab.size[2] / slab.images;
    *image = place / slab.size[2] % slab.images;
    return {row / slab.size[1], row % slab.size[1], place % slab.size[2]};
  }

  // The terms of a product of some places that may be other than zero: from the first, at a run's begin, to the last.
  std::pair<int64_t, int64_t> terms(const Slab& slab, const Phase& phase, int64_t begin, int64_t end) const {
    const int64_t rows = slab.size[1], first = begin / slab.size[2] / slab.images, last = (end - 1) / slab.size[2] / slab.images;
    const bool one = first / rows == last / rows;
    const Range depths{slab.begin[0] + first / rows, slab.begin[0] + last / rows + 1},
        own{slab.begin[1] + (one ? first % rows : 0), slab.begin[1] + (one ? last % rows + 1 : rows)};
    int64_t from = phase.depth, to = 0;
    for (const Run& run : phase.runs) {
      if (!phase.grid.reads(0, depths, run.depth) || !phase.grid.reads(1, own, run.row)) continue;
      from = std::min(from, run.at), to = std::max(to, run.at + run.length);
    }
    return {std::min(from / kLanes<T> * kLanes<T>, to), to};
  }

  // `length` numbers as the terms of a row from `at` on.
  static void copy(const T* from, int64_t length, T* row, int64_t rows, int64_t at) {
    constexpr int64_t lanes = kLanes<T>;
    if (at % lanes == 0) {
      // What is written behind the last number is overwritten or no term.
      for (T* to = row + at * rows; length > 0; length -= lanes, from += lanes, to += rows * lanes) store(to, load(from));
      return;
    }
    while (length > 0) {
      const int64_t within = at % lanes, count = std::min(length, lanes - within);
      store_masked(row + (at - within) * rows + within, load(from), between(0, count), 1);
      from += count, at += count, length -= count;
    }
  }

  // Sums of a phase's places, from `begin` on, where they stand among those of the slab.
  void place(const Slab& slab, const Grid& grid, int64_t begin, int64_t count, int64_t width, const T* sums, T* block) const {
    const Ints sizes = extent(all_, slab);
    for (int64_t i = 0; i < count; ++i) {
      int64_t image;
      Ints to = place_of(slab, begin + i, &image);
      for (int d = 0; d < 3; ++d) to[d] = to[d] * all_.out_step[d] + grid.first[d];
      if (to[0] < sizes[0] && to[1] < sizes[1] && to[2] < sizes[2])
        copy_short(sums + i * width, width, block + (((image * sizes[0] + to[0]) * sizes[1] + to[1]) * sizes[2] + to[2]) * width);
    }
  }

  const Channels one_;
  // How many groups make one, with zeros for weights between them.
  const int64_t share_;
  const Channels c_;
  const Grid all_;
  const Cut cut_;
  const ChannelsLast<T> layout_;
  const Panels<T> panels_;
  const Bias<T> bias_;
  const bool past_;
  std::vector<Phase> phases_;
  // Numbers of a panel of weights, and terms of a place.
  int64_t panel_ = 0, depth_ = 0;
};

template <class T>
void convolve(Pool& pool, const Channels& c, const std::vector<Grid>& grids, const T* x, const T* w, const T* bias, T* y) {
  run(pool, Convolution<T>(pool, c, grids, bias), x, w, y);
}

}  // namespace jnn::outputs
