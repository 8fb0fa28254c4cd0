// Convolutions of few places as products with the weight as it lies: what a place reads of the input is a row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "affine.h"
#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "tasks.h"
#include "transpose.h"
#include "vector.h"

namespace jnn::places {

// Numbers of a row that are gathered at a time, and those that are copied as fast as a line is.
constexpr int64_t kAtOnce = 2048, kLineWork = 8;

// Elements of the kernel, no more than lanes, that are neighbours and read along a row of the input, `step` apart; or that read nothing.
struct Line {
  int64_t element, count, step;
  Ints offset;
  bool reads;
};

// Those of all elements, of which the grid has some as taps, in their order.
template <class T>
std::vector<Line> lines_of(const Grid& grid, int64_t kernel) {
  std::vector<Line> found;
  const auto skip = [&](int64_t to) {
    int64_t from = found.empty() ? 0 : found.back().element + found.back().count;
    for (; from < to; from += kLanes<T>) found.push_back({from, std::min<int64_t>(kLanes<T>, to - from), 1, {}, false});
  };
  for (const Tap& tap : grid.taps) {
    skip(tap.index);
    if (!found.empty() && found.back().reads) {
      Line& line = found.back();
      const Ints& first = line.offset;
      const int64_t step = tap.offset[2] - first[2] - (line.count - 1) * line.step;
      const bool in_row = tap.offset[0] == first[0] && tap.offset[1] == first[1] && step > 0;
      if (in_row && line.count < kLanes<T> && (line.count == 1 || step == line.step)) {
        ++line.count, line.step = step;
        continue;
      }
    }
    found.push_back({tap.index, 1, 0, tap.offset, true});
  }
  skip(kernel);
  return found;
}

// The rows of a group, of (channel, element of the kernel) each.
template <class T>
class Rows {
 public:
  Rows(const Channels& c, const Grid& grid, int64_t kernel) : c_(c), grid_(grid), kernel_(kernel), lines_(lines_of<T>(grid, kernel)) {}

  int64_t count() const { return c_.batch * product(grid_.places); }
  int64_t depth() const { return c_.in * kernel_; }
  // Those of a place and an input channel; none where squares of numbers are transposed.
  int64_t lines() const { return single() ? 0 : lines_.size(); }
  // What it costs to gather a number, or a line of an input channel, in cycles of a product of vectors.
  double cost() const { return single() ? 0.5 : 3.3 * lines_.size(); }

  void gather(Pool& pool, int64_t group, const T* x, T* to) const {
    x += group * c_.in * product(grid_.in);
    if (single()) return transpose_places(pool, x, to);
    by_task(pool, count() * c_.in, kLineWork * lines_.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end;) {
        const int64_t place = at / c_.in, channel = at % c_.in, channels = std::min(c_.in - channel, end - at);
        gather(place, channel, channels, x, to + at * kernel_);
        at += channels;
      }
    });
  }

 private:
  // What a line of a place reads of a channel: lanes outside the input are not read.
  struct Read {
    int64_t from;
    Mask mask;
  };

  bool single() const { return kernel_ == 1 && grid_.taps.size() == 1 && grid_.everywhere(grid_.taps[0]); }

  void transpose_places(Pool& pool, const T* x, T* to) const {
    const Grid flat = grid_.flattened();
    const Ints& offset = flat.taps[0].offset;
    const int64_t size = product(flat.in), rows = flat.places[1], columns = flat.places[2], of_image = flat.places[0] * rows;
    by_task(pool, c_.batch * of_image, c_.in * columns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t depth = offset[0] + i % of_image / rows * flat.in_step[0], row = offset[1] + i % rows * flat.in_step[1];
        const T* from = x + i / of_image * c_.groups * c_.in * size + (depth * flat.in[1] + row) * flat.in[2] + offset[2];
        transpose(from, size, c_.in, columns, to + i * columns * c_.in, c_.in, flat.in_step[2]);
      }
    });
  }

  void gather(int64_t place, int64_t channel, int64_t channels, const T* x, T* to) const {
    const int64_t an_image = product(grid_.places), size = product(grid_.in), row = place % an_image / grid_.places[2];
    const Ints at{row / grid_.places[1], row % grid_.places[1], place % grid_.places[2]};
    x += (place / an_image * c_.groups * c_.in + channel) * size;
    // Line by line of some channels, which stay in the first cache.
    const Parts blocks(channels, std::max<int64_t>(1, kAtOnce / kernel_));
    for (int64_t b = 0; b < blocks.parts; ++b)
      for (const Line& line : lines_) {
        const Read read = this->read(line, at);
        const Mask all = between(0, line.count);
        const bool few = line.count <= kFewLanes<T> && line.step <= 1;
        for (int64_t i = blocks.begin(b); i < blocks.begin(b + 1); ++i) {
          const T* from = x + i * size + read.from;
          T* own = to + i * kernel_ + line.element;
          few ? copy_few(from, read.mask, own, all) : store_masked(own, load_masked(from, read.mask, line.step), all, 1);
        }
      }
  }

  // Of a line that begins at a column of the input.
  Mask inside(const Line& line, int64_t column) const {
    const int64_t last = column + (line.count - 1) * line.step, size = grid_.in[2];
    if (column >= 0 && last < size) return between(0, line.count);
    if (column >= size || last < 0) return 0;
    const int64_t step = std::max<int64_t>(1, line.step);
    return between((std::max<int64_t>(0, -column) + step - 1) / step, std::min(line.count, (size - 1 - column) / step + 1));
  }

  Read read(const Line& line, const Ints& place) const {
    Ints at;
    for (int d = 0; d < 3; ++d) at[d] = place[d] * grid_.in_step[d] + line.offset[d];
    if (!line.reads || at[0] < 0 || at[0] >= grid_.in[0] || at[1] < 0 || at[1] >= grid_.in[1]) return {0, 0};
    return {(at[0] * grid_.in[1] + at[1]) * grid_.in[2] + at[2], inside(line, at[2])};
  }

  const Channels& c_;
  const Grid& grid_;
  const int64_t kernel_;
  const std::vector<Line> lines_;
};

// Whether weights stand by input, as of a gradient by the input, here of a kernel of 1.
inline bool across(const Channels& c) { return c.in_stride > c.kernel(); }

template <class T>
void convolve(Pool& pool, const Channels& c, const Grid& grid, const T* x, const T* w, const T* bias, T* y) {
  const Rows<T> rows(c, grid, c.kernel());
  const int64_t an_image = product(grid.places);
  const auto left = memory<T>(rows.count() * rows.depth()), sums = memory<T>(rows.count() * c.out);
  for (int64_t group = 0; group < c.groups; ++group) {
    rows.gather(pool, group, x, left.get());
    const affine::Factor<T> right{w + group * c.group_stride, c.out, across(c)};
    affine::multiply<T>(pool, {left.get(), rows.count(), false}, right, rows.depth(), sums.get(), bias ? bias + group * c.out : nullptr,
                        nullptr);
    for (int64_t i = 0; i < c.batch; ++i)
      transpose(sums.get() + i * an_image * c.out, c.out, an_image, c.out, y + (i * c.groups + group) * c.out * an_image, an_image);
  }
}

// The gradient by the weight: g (N, O, *places) and x (N, C, *in) give w (O, C / groups, *K), all of whose taps the grid has.
template <class T>
void correlate(Pool& pool, const Channels& c, const Grid& grid, const T* g, const T* x, T* w) {
  const Rows<T> rows(c, grid, grid.taps.size());
  const int64_t an_image = product(grid.places);
  const auto right = memory<T>(rows.count() * rows.depth()), left = memory<T>(rows.count() * c.out);
  for (int64_t group = 0; group < c.groups; ++group) {
    rows.gather(pool, group, x, right.get());
    const T* slopes = g + group * c.out * an_image;
    T* to = left.get();
    for (int64_t output = 0; output < c.out; ++output)
      for (int64_t i = 0; i < c.batch; ++i) to = copy_short(slopes + (i * c.groups * c.out + output) * an_image, an_image, to);
    affine::multiply<T>(pool, {left.get(), c.out, false}, {right.get(), rows.depth(), true}, rows.count(), w + group * c.out * rows.depth(),
                        nullptr, nullptr);
  }
}

}  // namespace jnn::places
