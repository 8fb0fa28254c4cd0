// Convolutions over inputs that are copied once, with zeros around, so that each tap stands at one distance from all places.
//
// Rows of a slab follow each other with `reach` more columns than there are places: places are counted through them, and what is
// computed for the columns between two rows is dropped. Steps of more than 1 split the input by what is left over of their division.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cut.h"
#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "stacks.h"
#include "vector.h"
#include "weights.h"

namespace jnn::slabs {

// The most numbers of a slab's input, which stays in the cache.
constexpr int64_t kMost = 1 << 16;
// The places that a gradient by the weight sums up at a time, about.
constexpr int64_t kPlacesAtOnce = 1024;

template <class T>
class Layout {
 public:
  // Slabs of `channels` input channels, of about `places` places at most; at least `wanted` of them where there are so many.
  Layout(const Grid& grid, int64_t batch, int64_t channels, int64_t places, int64_t wanted) : grid_(grid) {
    for (int d = 0; d < 3; ++d) {
      low_[d] = grid.taps.empty() ? 0 : grid.taps[0].offset[d];
      for (const Tap& tap : grid.taps) low_[d] = std::min(low_[d], tap.offset[d]);
    }
    for (const Tap& tap : grid.taps) {
      Ints phase, shift;
      for (int d = 0; d < 3; ++d) {
        phase[d] = (tap.offset[d] - low_[d]) % grid.in_step[d];
        shift[d] = (tap.offset[d] - low_[d]) / grid.in_step[d];
        reach_[d] = std::max(reach_[d], shift[d]);
      }
      const auto found = std::find(phases_.begin(), phases_.end(), phase);
      taps_.push_back({found - phases_.begin(), shift});
      if (found == phases_.end()) phases_.push_back(phase);
    }
    auto numbers = [&](const Ints& size) { return (size[0] + reach_[0]) * (size[1] + reach_[1]) * (size[2] + reach_[2]); };
    const int64_t most = std::min(places, kMost / std::max<int64_t>(1, channels * phases_.size()));
    cut_ = Cut(grid.places, batch, most, wanted, numbers);
    for (int d = 0; d < 3; ++d) input_[d] = cut_.size[d] + reach_[d];
  }

  const Cut& cut() const { return cut_; }

  int64_t phases() const { return phases_.size(); }
  // Numbers of a channel of a slab's input, and of those that places are counted through: of one row, one depth, one image.
  int64_t channel() const { return phases_.size() * places(); }
  int64_t row() const { return input_[2]; }
  int64_t depth() const { return input_[1] * input_[2]; }
  int64_t image() const { return product(input_); }
  int64_t places() const { return cut_.most_images * image(); }
  // From a depth's first place to its last, and from the slab's.
  int64_t length(const Slab& slab) const { return slab.size[1] * row() - reach_[2]; }
  int64_t whole(const Slab& slab) const { return (slab.images - 1) * image() + (slab.size[0] - 1) * depth() + length(slab); }

  // What is to be read before and after for a whole tile.
  static constexpr int64_t kSlack = 2 * kTileColumns<T>;

  // How far each tap of each channel is from a place.
  std::vector<int32_t> offsets(int64_t channels) const {
    std::vector<int32_t> found;
    for (int64_t c = 0; c < channels; ++c)
      for (const auto& [phase, shift] : taps_)
        found.push_back(c * channel() + phase * places() + (shift[0] * input_[1] + shift[1]) * input_[2] + shift[2]);
    return found;
  }

  // The taps as stacks, of what is in_stacks().
  Stacks stacks() const {
    std::vector<Ints> shifts;
    for (const auto& [phase, shift] : taps_) shifts.push_back(shift);
    return {shifts, reach_[1] + 1, row(), depth()};
  }
  // The shifts by depths that are inside the input, for a depth of a slab.
  Range inside(const Slab& slab, int64_t depth) const {
    const int64_t first = (slab.begin[0] + depth) * grid_.in_step[0] + low_[0];
    return {-first, grid_.in[0] - first};
  }

  // The slab's input, of `channels` channels from x on, which is one of `in_channels` of its first image.
  void fill(const Slab& slab, const T* x, int64_t channels, int64_t in_channels, T* to) const {
    std::vector<Mask> masks;
    for (const Ints& phase : phases_) append_masks(phase[2], &masks);
    const int64_t vectors = masks.size() / phases_.size();
    for (int64_t c = 0; c < channels; ++c)
      for (size_t p = 0; p < phases_.size(); ++p, to += places())
        for (int64_t i = 0; i < slab.images; ++i)
          fill(slab, phases_[p], masks.data() + p * vectors, x + ((slab.image + i) * in_channels + c) * product(grid_.in),
               to + i * image());
    std::fill(to, to + kSlack, T{0});
  }

  // Values of the slab's places, of `channels` channels from g on, to where places are counted; `pitch` numbers a channel.
  void spread(const Slab& slab, const T* g, int64_t channels, int64_t all_channels, int64_t pitch, T* to) const {
    const Ints all = grid_.places;
    for (int64_t c = 0; c < channels; ++c, to += pitch)
      for (int64_t part = 0; part < slab.images * slab.size[0]; ++part) {
        const int64_t i = part / slab.size[0], z = part % slab.size[0];
        const T* from = g + (((slab.image + i) * all_channels + c) * all[0] + slab.begin[0] + z) * all[1] * all[2] + slab.begin[1] * all[2];
        for (int64_t y = 0; y < slab.size[1]; ++y) copy_short(from + y * all[2], all[2], to + i * image() + z * depth() + y * row());
      }
  }

 private:
  // The lanes of a row's vectors that stand inside the input.
  void append_masks(int64_t phase, std::vector<Mask>* masks) const {
    const int64_t step = grid_.in_step[2], left = low_[2] + phase, columns = grid_.in[2];
    const int64_t first = left < 0 ? std::min((-left + step - 1) / step, row()) : 0;
    const int64_t end = std::clamp(left < columns ? (columns - 1 - left) / step + 1 : 0, first, row());
    for (int64_t at = 0; at < row(); at += kLanes<T>)
      masks->push_back(between(std::clamp<int64_t>(first - at, 0, kLanes<T>), std::clamp<int64_t>(end - at, 0, kLanes<T>)));
  }

  // Of one channel and phase. Rows are stored by whole vectors, the rest of which the next row overwrites.
  void fill(const Slab& slab, const Ints& phase, const Mask* masks, const T* x, T* to) const {
    const int64_t step = grid_.in_step[2], columns = grid_.in[2], rows = slab.size[1] + reach_[1], length = row();
    for (int64_t z = 0; z < slab.size[0] + reach_[0]; ++z) {
      const int64_t depth = (slab.begin[0] + z) * grid_.in_step[0] + low_[0] + phase[0];
      const bool inside = depth >= 0 && depth < grid_.in[0];
      int64_t row = slab.begin[1] * grid_.in_step[1] + low_[1] + phase[1];
      const T* from = x + (depth * grid_.in[1] + row) * columns + low_[2] + phase[2];
      T* out = to + z * this->depth();
      for (int64_t y = 0; y < rows; ++y, row += grid_.in_step[1], from += grid_.in_step[1] * columns, out += length) {
        const bool read = inside && row >= 0 && row < grid_.in[1];
        for (int64_t at = 0; at < length; at += kLanes<T>)
          store(out + at, read ? load_masked(from + at * step, masks[at / kLanes<T>], step) : Vector<T>{});
      }
    }
  }

  struct Shift {
    int64_t phase;
    Ints by;
  };

  const Grid& grid_;
  Ints low_, reach_{0, 0, 0}, input_;
  std::vector<Ints> phases_;
  std::vector<Shift> taps_;
  Cut cut_;
};

// Rows of the output from what was computed for a slab's depth.
template <class T>
void write(const Grid& grid, const Slab& slab, int64_t depth, int64_t pitch, const T* from, T* image) {
  const int64_t step = grid.out_step[2];
  for (int64_t y = 0; y < slab.size[1]; ++y) {
    const int64_t z = grid.first[0] + (slab.begin[0] + depth) * grid.out_step[0],
                  row = grid.first[1] + (slab.begin[1] + y) * grid.out_step[1];
    T* to = image + (z * grid.out[1] + row) * grid.out[2] + grid.first[2];
    if (step == 1) {
      copy_short(from + y * pitch, grid.places[2], to);
    } else {
      for (int64_t x = 0; x < grid.places[2]; ++x) to[x * step] = from[y * pitch + x];
    }
  }
}

// To one output, by stacks of taps.
template <class T>
void convolve_stacked(Pool& pool, const Channels& c, const Grid& grid, const Layout<T>& layout, const T* x, const T* weights, const T* bias,
                      T* y) {
  const Stacks stacks = layout.stacks();
  const int64_t taps = c.in * grid.taps.size(), in_size = product(grid.in), out_size = product(grid.out), pitch = whole<T>(grid.places[2]);
  parallel(pool, layout.cut().slabs() * c.groups, [&](int64_t task) {
    const int64_t group = task % c.groups;
    const Slab slab = layout.cut().slab(task / c.groups);
    const auto input = memory<T>(c.in * layout.channel() + layout.kSlack), own = memory<T>(taps), sums = memory<T>(slab.size[1] * pitch);
    layout.fill(slab, x + group * c.in * in_size, c.in, c.groups * c.in, input.get());
    stacks.order(weights + group * taps, c.in, own.get());
    for (int64_t i = 0; i < slab.images; ++i)
      for (int64_t depth = 0; depth < slab.size[0]; ++depth) {
        const T* from = input.get() + i * layout.image() + depth * layout.depth();
        stacks.multiply(own.get(), from, c.in, layout.channel(), layout.inside(slab, depth), slab.size[1], grid.places[2],
                        bias ? bias[group] : T{0}, sums.get(), pitch);
        write(grid, slab, depth, pitch, sums.get(), y + ((slab.image + i) * c.groups + group) * out_size);
      }
  });
}

template <class T>
void convolve(Pool& pool, const Channels& c, const Grid& grid, const T* x, const T* w, const T* bias, T* y) {
  const int64_t depth = c.in * grid.taps.size(), in_size = product(grid.in), out_size = product(grid.out), width = kTileColumns<T>;
  const Parts rows(c.out, kMostRows);
  const auto weights = ordered(pool, c, grid, w, rows);
  const int64_t wanted = kTasksAThread * pool.num_threads();
  const Layout<T> layout(grid, c.batch, c.in, kMost, (wanted + c.groups - 1) / c.groups);
  if (in_stacks(c, grid)) return convolve_stacked(pool, c, grid, layout, x, weights.get(), bias, y);
  const auto offsets = layout.offsets(c.in);
  parallel(pool, layout.cut().slabs() * c.groups, [&](int64_t task) {
    const int64_t group = task % c.groups;
    const Slab slab = layout.cut().slab(task / c.groups);
    const int64_t parts = slab.images * slab.size[0], tiles_of_part = (layout.length(slab) + width - 1) / width;
    const int64_t tiles_of_whole = (layout.whole(slab) + width - 1) / width;
    // Tiles go through the slab from end to end, or begin anew with each depth, whichever are fewer.
    const bool through = tiles_of_whole <= parts * tiles_of_part;
    const int64_t tiles = through ? tiles_of_whole : parts * tiles_of_part, pitch = tiles * width;
    auto place = [&](int64_t part) { return part / slab.size[0] * layout.image() + part % slab.size[0] * layout.depth(); };
    const auto input = memory<T>(c.in * layout.channel() + layout.kSlack), sums = memory<T>(kMostRows * pitch);
    layout.fill(slab, x + group * c.in * in_size, c.in, c.groups * c.in, input.get());
    for (int64_t r = 0; r < rows.parts; ++r) {
      const int64_t first = group * c.out + rows.begin(r), count = rows.size(r);
      for (int64_t t = 0, next; t < tiles; t = next) {
        const int64_t from = through ? t * width : place(t / tiles_of_part) + t % tiles_of_part * width;
        const int64_t beside = through ? tiles - t : tiles_of_part - t % tiles_of_part;
        const bool wide = count <= kWideRows && beside >= kWide;
        const auto tile = wide ? kWideTiles<T>[count - 1] : kTiles<T>[count - 1];
        tile(depth, weights.get() + first * depth, count, input.get() + from, offsets.data(), sums.get() + t * width, pitch, false,
             bias ? bias + first : nullptr);
        next = t + (wide ? kWide : 1);
      }
      for (int64_t i = 0; i < count; ++i)
        for (int64_t part = 0; part < parts; ++part)
          write(grid, slab, part % slab.size[0], layout.row(),
                sums.get() + i * pitch + (through ? place(part) : part * tiles_of_part * width),
                y + ((slab.image + part / slab.size[0]) * c.groups * c.out + first + i) * out_size);
    }
  });
}

// The input channels of a group in parts, for each of which a task makes the gradient by the weight; and how it cuts the places.
inline Parts shares(const Channels& c, const Grid& grid, int64_t threads) {
  const int64_t most = std::max<int64_t>(1, 40 / int64_t(grid.taps.size()));
  return {c.in, std::clamp(c.in * c.groups / (kTasksAThread * threads), int64_t{1}, most)};
}
template <class T>
Layout<T> layout_of(const Channels& c, const Grid& grid, const Parts& shares) {
  return {grid, c.batch, shares.size(0) + 1, kPlacesAtOnce, 1};
}

// The gradient by the weight: g (N, O, *places) and x (N, C, *in) give w (O, C / groups, *K).
template <class T>
void correlate(Pool& pool, const Channels& c, const Grid& grid, const T* g, const T* x, T* w) {
  const int64_t taps = grid.taps.size(), in_size = product(grid.in), columns = c.in * taps, lanes = kLanes<T>;
  std::fill(w, w + c.groups * c.out * columns, T{0});
  const Parts channels = shares(c, grid, pool.num_threads());
  const Layout<T> layout = layout_of<T>(c, grid, channels);
  const Parts rows(c.out, kMostDots);
  parallel(pool, c.groups * channels.parts, [&](int64_t task) {
    const int64_t group = task / channels.parts, begin = channels.begin(task % channels.parts),
                  count = channels.size(task % channels.parts);
    const auto offsets = layout.offsets(count);
    const Parts dots(count * taps, kMostDots);
    const int64_t pitch = (layout.places() + lanes - 1) / lanes * lanes, numbers = count * layout.channel() + layout.kSlack;
    const auto input = memory<T>(numbers), slopes = memory<T>(c.out * pitch);
    // Between rows of g there are zeros; what they meet must be numbers.
    std::fill(input.get(), input.get() + numbers, T{0});
    int64_t filled = 0;
    for (int64_t s = 0; s < layout.cut().slabs(); ++s) {
      const Slab slab = layout.cut().slab(s);
      const int64_t length = layout.whole(slab);
      layout.fill(slab, x + (group * c.in + begin) * in_size, count, c.groups * c.in, input.get());
      if (length != filled) std::fill(slopes.get(), slopes.get() + c.out * pitch, T{0});
      filled = length;
      layout.spread(slab, g + group * c.out * product(grid.places), c.out, c.groups * c.out, pitch, slopes.get());
      for (int64_t d = 0; d < dots.parts; ++d)
        for (int64_t r = 0; r < rows.parts; ++r)
          kDots<T>[(rows.size(r) - 1) * kMostDots + dots.size(d) - 1](
              (length + lanes - 1) / lanes* lanes, slopes.get() + rows.begin(r)* pitch, pitch, input.get(), offsets.data() + dots.begin(d),
              w + (group* c.out + rows.begin(r))* columns + begin* taps + dots.begin(d), columns);
    }
  });
}

}  // namespace jnn::slabs
