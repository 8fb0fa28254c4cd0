// Inputs and outputs with their channels last: what neighbouring places hold of all channels follows each other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

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

// The outputs of a slab's places by dimension, which are `grid.out_step` for each but at the end.
inline Ints extent(const Grid& grid, const Slab& slab) {
  Ints sizes;
  for (int d = 0; d < 3; ++d) sizes[d] = std::min(slab.size[d] * grid.out_step[d], grid.out[d] - slab.begin[d] * grid.out_step[d]);
  return sizes;
}

// A slab's outputs from where `width` numbers of each place are channels, `count` of which are there, to those of the first image;
// `past` the cache or not.
template <class T>
void write(const Grid& grid, const Slab& slab, const T* from, int64_t width, int64_t count, T* y, int64_t an_image, int64_t a_channel,
           bool past) {
  const Ints sizes = extent(grid, slab);
  const int64_t plane = sizes[1] * sizes[2];
  for (int64_t part = 0; part < slab.images * sizes[0]; ++part, from += plane * width) {
    const int64_t image = slab.image + part / sizes[0], depth = slab.begin[0] * grid.out_step[0] + part % sizes[0];
    T* to = y + image * an_image + (depth * grid.out[1] + slab.begin[1] * grid.out_step[1]) * grid.out[2];
    transpose(from, width, plane, count, to, a_channel, 1, past);
  }
}

// The inputs of a cut's slabs, with zeros around.
template <class T>
class ChannelsLast {
 public:
  ChannelsLast(const Grid& grid, int64_t channels, const Cut& cut)
      : grid_(grid), reach_(grid), input_(reach_.input(cut.size)), channels_(channels), numbers_(numbers(input_, channels, cut)) {
    inside_ = inside(2, 0);
    if (reach_.skip(1) != 1 || reach_.skip(2) != 1 || inside_.size() != grid.in[2]) return;
    for (int64_t y = 0; y < input_[1]; ++y)
      for (int64_t x = 0; x < grid.in[2]; ++x) through_.push_back(at(0, y, inside_.begin + x));
  }

  const Reach& reach() const { return reach_; }
  const Ints& input() const { return input_; }
  int64_t image() const { return product(input_) * channels_; }
  // Of a slab whose images have inputs of `sizes`, with vectors that are read behind the last place.
  static int64_t numbers(const Ints& sizes, int64_t channels, const Cut& cut) {
    return cut.most_images * product(sizes) * channels + kTileColumns<T>;
  }
  int64_t numbers() const { return numbers_; }

  // Where the channels of a place stand, which is counted from the first that is kept.
  int64_t at(int64_t z, int64_t y, int64_t x) const { return flat(input_, z, y, x) * channels_; }

  // The slab's input, of channels from x on, of which there are `all` in an image.
  void fill(const Slab& slab, const T* x, int64_t all, T* to) const { fill(slab, x, all, to, channels_); }

  // The same of `count` channels only.
  void fill(const Slab& slab, const T* x, int64_t all, T* to, int64_t count) const {
    const int64_t a_depth = at(1, 0, 0), a_row = at(0, 1, 0);
    for (int64_t i = 0; i < slab.images; ++i)
      for (int64_t z = 0; z < input_[0]; ++z, to += a_depth) {
        const Range depths = inside(0, slab.begin[0]), rows = z < depths.begin || z >= depths.end ? Range{0, 0} : inside(1, slab.begin[1]);
        const int64_t depth = place(0, slab.begin[0], z), row = place(1, slab.begin[1], rows.begin);
        std::fill(to, to + rows.begin * a_row, T{0});
        for (int64_t y = rows.begin; y < rows.end; ++y) {
          std::fill(to + y * a_row, to + y * a_row + inside_.begin * channels_, T{0});
          std::fill(to + y * a_row + inside_.end * channels_, to + (y + 1) * a_row, T{0});
        }
        std::fill(to + rows.end * a_row, to + a_depth, T{0});
        copy(rows, x + (((slab.image + i) * all * grid_.in[0] + depth) * grid_.in[1] + row) * grid_.in[2], to, count);
      }
  }

 private:
  // Where the i-th place that is kept along a dimension stands in the input, for outputs from `begin` on.
  int64_t place(int d, int64_t begin, int64_t i) const { return begin * grid_.in_step[d] + reach_.low(d) + i * reach_.skip(d); }

  // Which of the places that are kept along a dimension are inside the input.
  Range inside(int d, int64_t begin) const {
    const int64_t from = place(d, begin, 0), skip = reach_.skip(d), kept = input_[d];
    const int64_t first = from < 0 ? std::min((skip - 1 - from) / skip, kept) : 0;
    return {first, std::clamp(from < grid_.in[d] ? (grid_.in[d] - 1 - from) / skip + 1 : 0, first, kept)};
  }

  // Rows of `count` channels, of which the first begins at `from`; those that follow each other in the input are one.
  void copy(const Range& rows, const T* from, T* to, int64_t count) const {
    const int64_t a_channel = product(grid_.in), width = grid_.in[2];
    if (!through_.empty()) {
      const int32_t* at = through_.data() + rows.begin * width;
      return transpose_to(from, a_channel, count, rows.size() * width, 1, [=](int64_t j) { return to + at[j]; });
    }
    from += place(2, 0, inside_.begin), to += this->at(0, rows.begin, inside_.begin);
    for (int64_t y = 0; y < rows.size(); ++y, from += reach_.skip(1) * width, to += this->at(0, 1, 0))
      transpose(from, a_channel, count, inside_.size(), to, channels_, reach_.skip(2));
  }

  const Grid& grid_;
  const Reach reach_;
  const Ints input_;
  const int64_t channels_, numbers_;
  // The columns that are inside the input, and where its places stand if its rows are kept whole.
  Range inside_;
  std::vector<int32_t> through_;
};

}  // namespace jnn
