// Inputs with their channels last: what neighbouring places hold of all channels follows each other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cut.h"
#include "geometry.h"
#include "transpose.h"

namespace jnn {

// What a grid's taps reach of the input.
class Reach {
 public:
  explicit Reach(const Grid& grid) : low_(grid.low()), high_(low_) {
    for (const Tap& tap : grid.taps)
      for (int d = 0; d < 3; ++d) high_[d] = std::max(high_[d], tap.offset[d]);
    // Offsets of one place only read in steps; others have what lies between steps too.
    for (int d = 0; d < 3; ++d) step_[d] = low_[d] == high_[d] ? 1 : grid.in_step[d], skip_[d] = grid.in_step[d] / step_[d];
  }

  // The least offset, how many of the places that are kept lie between the reads of two outputs, and how far these are apart in the input.
  int64_t low(int d) const { return low_[d]; }
  int64_t step(int d) const { return step_[d]; }
  int64_t skip(int d) const { return skip_[d]; }

  // The places that outputs of `size` read.
  Ints input(const Ints& size) const {
    Ints sizes;
    for (int d = 0; d < 3; ++d) sizes[d] = (size[d] - 1) * step_[d] + high_[d] - low_[d] + 1;
    return sizes;
  }

  // Slabs whose input has `most` numbers at most, as far as rows go.
  Cut cut(const Grid& grid, int64_t batch, int64_t channels, int64_t most, int64_t wanted) const {
    auto numbers = [&](const Ints& size) { return product(input(size)) * channels; };
    return Cut(grid.places, batch, std::max(most, numbers({1, 1, grid.places[2]})), wanted, numbers);
  }

 private:
  Ints low_, high_, step_, skip_;
};

// The inputs of a cut's slabs, with zeros around.
template <class T>
class ChannelsLast {
 public:
  ChannelsLast(const Grid& grid, int64_t channels, const Cut& cut)
      : grid_(grid), reach_(grid), input_(reach_.input(cut.size)), channels_(channels), images_(cut.most_images) {}

  const Reach& reach() const { return reach_; }
  const Ints& input() const { return input_; }
  int64_t image() const { return product(input_) * channels_; }
  // Of a slab, with vectors that are read behind the last place.
  int64_t numbers() const { return images_ * image() + kTileColumns<T>; }

  // Where the channels of a place stand, which is counted from the first that is kept.
  int64_t at(int64_t z, int64_t y, int64_t x) const { return ((z * input_[1] + y) * input_[2] + x) * channels_; }

  // The slab's input, of channels from x on, of which there are `all` in an image.
  void fill(const Slab& slab, const T* x, int64_t all, T* to) const {
    const int64_t a_channel = product(grid_.in), left = reach_.low(2), skip = reach_.skip(2), row = input_[2] * channels_;
    const int64_t first = left < 0 ? std::min((-left + skip - 1) / skip, input_[2]) : 0;
    const int64_t end = std::clamp(left < grid_.in[2] ? (grid_.in[2] - 1 - left) / skip + 1 : 0, first, input_[2]);
    for (int64_t i = 0; i < slab.images; ++i)
      for (int64_t z = 0; z < input_[0]; ++z)
        for (int64_t y = 0; y < input_[1]; ++y, to += row) {
          const int64_t depth = slab.begin[0] * grid_.in_step[0] + reach_.low(0) + z * reach_.skip(0);
          const int64_t line = slab.begin[1] * grid_.in_step[1] + reach_.low(1) + y * reach_.skip(1);
          const bool inside = depth >= 0 && depth < grid_.in[0] && line >= 0 && line < grid_.in[1];
          std::fill(to, to + (inside ? first * channels_ : row), T{0});
          if (!inside) continue;
          const T* from = x + (slab.image + i) * all * a_channel + (depth * grid_.in[1] + line) * grid_.in[2] + left;
          transpose(from + first * skip, a_channel, channels_, end - first, to + first * channels_, channels_, skip);
          std::fill(to + end * channels_, to + row, T{0});
        }
  }

 private:
  const Grid& grid_;
  const Reach reach_;
  const Ints input_;
  const int64_t channels_, images_;
};

}  // namespace jnn
