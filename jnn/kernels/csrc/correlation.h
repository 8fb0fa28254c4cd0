// Gradients by the weight as products of the output's gradient with inputs that have their channels last.
//
// All channels that stand at one place, and for neighbouring offsets of the kernel those of neighbouring places, follow each other: they
// are the columns of the product. Places are its terms, wherever they stand.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cut.h"
#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "transpose.h"
#include "vector.h"

namespace jnn::correlation {

// The most numbers of a slab's input, and the most places of a slab.
constexpr int64_t kMost = 1 << 17, kPlaces = 512;
// The batch is summed up in so many parts at most, of so many numbers in all: neither depends on the threads, and so no sum does.
constexpr int64_t kParts = 16, kMostSums = 1 << 22;
constexpr int64_t kTasksAThread = 4;

// Offsets of the kernel that read neighbouring channels: `taps` of them from the first on.
struct Columns {
  int64_t first, taps, from, at;
};

// Inputs with their channels last and zeros around.
template <class T>
class Rows {
 public:
  Rows(const Grid& grid, const Channels& c, int64_t parts) : grid_(grid), channels_(c.in) {
    high_ = low_ = grid.taps[0].offset;
    for (const Tap& tap : grid.taps)
      for (int d = 0; d < 3; ++d) low_[d] = std::min(low_[d], tap.offset[d]), high_[d] = std::max(high_[d], tap.offset[d]);
    // Offsets of one place only read in steps; others have what lies between steps too.
    for (int d = 0; d < 3; ++d) step_[d] = low_[d] == high_[d] ? 1 : grid.in_step[d], skip_[d] = grid.in_step[d] / step_[d];
    auto numbers = [&](const Ints& size) { return product(input(size)) * channels_; };
    cut_ = Cut(grid.places, c.batch, std::max(kMost, numbers({1, 1, grid.places[2]})), parts, numbers);
    input_ = input(cut_.size);
    int64_t at = 0;
    for (size_t i = 0; i < grid.taps.size(); ++i) {
      const int64_t from = place(grid.taps[i].offset);
      if (i && from == columns_.back().from + columns_.back().taps * channels_) {
        ++columns_.back().taps;
      } else {
        at = columns_.empty() ? 0 : at + round(columns_.back().taps * channels_);
        columns_.push_back({static_cast<int64_t>(i), 1, from, at});
      }
    }
    width_ = at + round(columns_.back().taps * channels_);
  }

  const Cut& cut() const { return cut_; }
  const std::vector<Columns>& columns() const { return columns_; }
  // Of all columns, each run of them filled up to whole vectors.
  int64_t width() const { return width_; }
  int64_t numbers() const { return cut_.most_images * product(input_) * channels_ + kTileColumns<T>; }

  // Where the places of a slab stand.
  std::vector<int32_t> offsets(const Slab& slab) const {
    std::vector<int32_t> found;
    for (int64_t i = 0; i < slab.images; ++i)
      for (int64_t z = 0; z < slab.size[0]; ++z)
        for (int64_t y = 0; y < slab.size[1]; ++y)
          for (int64_t x = 0; x < slab.size[2]; ++x) {
            const Ints at{z * step_[0] + low_[0], y * step_[1] + low_[1], x * step_[2] + low_[2]};
            found.push_back(i * product(input_) * channels_ + place(at));
          }
    return found;
  }

  // The slab's input, of channels from x on.
  void fill(const Slab& slab, const T* x, int64_t all_channels, T* to) const {
    const int64_t a_channel = product(grid_.in), left = low_[2], skip = skip_[2];
    const int64_t first = left < 0 ? std::min((-left + skip - 1) / skip, input_[2]) : 0;
    const int64_t end = std::clamp(left < grid_.in[2] ? (grid_.in[2] - 1 - left) / skip + 1 : 0, first, input_[2]);
    for (int64_t i = 0; i < slab.images; ++i)
      for (int64_t z = 0; z < input_[0]; ++z)
        for (int64_t y = 0; y < input_[1]; ++y, to += input_[2] * channels_) {
          const int64_t depth = slab.begin[0] * grid_.in_step[0] + low_[0] + z * skip_[0];
          const int64_t row = slab.begin[1] * grid_.in_step[1] + low_[1] + y * skip_[1];
          const bool inside = depth >= 0 && depth < grid_.in[0] && row >= 0 && row < grid_.in[1];
          std::fill(to, to + (inside ? first : input_[2]) * channels_, T{0});
          if (!inside) continue;
          const T* from = x + (slab.image + i) * all_channels * a_channel + (depth * grid_.in[1] + row) * grid_.in[2] + left;
          transpose(from + first * skip, a_channel, channels_, end - first, to + first * channels_, channels_, skip);
          std::fill(to + end * channels_, to + input_[2] * channels_, T{0});
        }
  }

 private:
  static int64_t round(int64_t columns) { return (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }
  Ints input(const Ints& size) const {
    Ints sizes;
    for (int d = 0; d < 3; ++d) sizes[d] = (size[d] - 1) * step_[d] + high_[d] - low_[d] + 1;
    return sizes;
  }
  int64_t place(const Ints& at) const {
    return (((at[0] - low_[0]) * input_[1] + at[1] - low_[1]) * input_[2] + at[2] - low_[2]) * channels_;
  }

  const Grid& grid_;
  int64_t channels_, width_;
  Ints low_, high_, step_, skip_, input_;
  Cut cut_;
  std::vector<Columns> columns_;
};

// Panels of outputs, from the first to the last, that a task makes of a group.
struct Share {
  const Parts& panels;
  int64_t first, last;

  // Where a panel begins among those of the share.
  int64_t row(int64_t panel) const { return panels.begin(panel) - panels.begin(first); }
};

// The share's g (N, all, *places) at a slab's places, by panel, by place.
template <class T>
void order(const Grid& grid, const Slab& slab, const Share& share, const T* g, int64_t all, T* to) {
  const int64_t depth = slab.size[1] * slab.size[2], parts = slab.images * slab.size[0], an_image = product(grid.places);
  for (int64_t r = share.first; r < share.last; ++r)
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t image = slab.image + part / slab.size[0], z = slab.begin[0] + part % slab.size[0], count = share.panels.size(r);
      const T* from = g + (image * all + share.panels.begin(r)) * an_image + (z * grid.places[1] + slab.begin[1]) * grid.places[2];
      transpose(from, an_image, count, depth, to + share.row(r) * parts * depth + part * depth * count, count);
    }
}

// Adds the products of a slab to the share's sums, (outputs, rows.width()).
template <class T>
void add_products(const Rows<T>& rows, const Share& share, int64_t channels, const T* slopes, const T* input,
                  const std::vector<int32_t>& offsets, T* sums) {
  const int64_t places = offsets.size();
  for (int64_t k = 0; k < places; k += kPlaces) {
    const int64_t terms = std::min(kPlaces, places - k);
    for (const Columns& columns : rows.columns())
      for (int64_t j = 0, end = columns.taps * channels; j < end; j += kTileColumns<T>) {
        const auto& tiles = end - j > kLanes<T> ? kTiles<T> : kNarrowTiles<T>;
        for (int64_t r = share.first; r < share.last; ++r) {
          const int64_t count = share.panels.size(r);
          tiles[count - 1](terms, slopes + share.row(r) * places + k * count, input + columns.from + j, offsets.data() + k,
                           sums + share.row(r) * rows.width() + columns.at + j, rows.width(), true);
        }
      }
  }
}

// The weights of an output from its sums, which stand in parts, `stride` apart.
template <class T>
void gather(const Rows<T>& rows, const Channels& c, const Grid& grid, int64_t parts, int64_t stride, const T* sums, T* w) {
  const auto total = zeros<T>(rows.width());
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t j = 0; j < rows.width(); ++j) total[j] += sums[part * stride + j];
  for (const Columns& columns : rows.columns())
    for (int64_t t = 0; t < columns.taps; ++t)
      for (int64_t channel = 0; channel < c.in; ++channel)
        w[channel * grid.taps.size() + grid.taps[columns.first + t].index] = total[columns.at + t * c.in + channel];
}

// g (N, O, *places) and x (N, C, *in) give w (O, C / groups, *K).
template <class T>
void correlate(ffi::ThreadPool& pool, const Channels& c, const Grid& grid, const T* g, const T* x, T* w) {
  const int64_t a_weight = c.in * grid.taps.size(), all = c.groups * c.out;
  const int64_t wanted = std::clamp(std::min(kMostSums / (all * a_weight), kParts / c.groups), int64_t{1}, kParts);
  const Rows<T> rows(grid, c, wanted);
  const Parts parts(rows.cut().slabs(), (rows.cut().slabs() + wanted - 1) / wanted), panels(c.out, kMostRows);
  const int64_t tasks_wanted = kTasksAThread * pool.num_threads(), width = rows.width();
  const Parts shares(panels.parts, std::clamp(panels.parts * c.groups * parts.parts / tasks_wanted, int64_t{1}, panels.parts));
  const auto sums = memory<T>(parts.parts * all * width);
  parallel(pool, parts.parts * c.groups * shares.parts, [&](int64_t task) {
    const int64_t part = task / shares.parts / c.groups, group = task / shares.parts % c.groups;
    const Share share{panels, shares.begin(task % shares.parts), shares.begin(task % shares.parts + 1)};
    const int64_t begin = panels.begin(share.first), outputs = panels.begin(share.last) - begin;
    T* own = sums.get() + (part * all + group * c.out + begin) * width;
    std::fill_n(own, outputs * width, T{0});
    const auto input = memory<T>(rows.numbers()), slopes = memory<T>(outputs * rows.cut().most_images * product(rows.cut().size));
    for (int64_t s = parts.begin(part); s < parts.begin(part + 1); ++s) {
      const Slab slab = rows.cut().slab(s);
      rows.fill(slab, x + group * c.in * product(grid.in), c.groups * c.in, input.get());
      order(grid, slab, share, g + group * c.out * product(grid.places), all, slopes.get());
      add_products(rows, share, c.in, slopes.get(), input.get(), rows.offsets(slab), own);
    }
  });
  parallel(pool, all, [&](int64_t o) { gather(rows, c, grid, parts.parts, all * width, sums.get() + o * width, w + o * a_weight); });
}

}  // namespace jnn::correlation
