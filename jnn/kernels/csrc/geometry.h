// What of a convolution is no array.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace jnn {

// By dimension: depth, row, column.
using Ints = std::array<int64_t, 3>;

inline int64_t product(const Ints& sizes) { return sizes[0] * sizes[1] * sizes[2]; }
// Where a place stands among all, row by row.
inline int64_t flat(const Ints& sizes, int64_t z, int64_t y, int64_t x) { return (z * sizes[1] + y) * sizes[2] + x; }

// One offset of the kernel: which of its elements, and where it reads from.
struct Tap {
  Ints offset;
  int64_t index;
};

// From the first to the last of what is numbered.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool has(int64_t i) const { return begin <= i && i < end; }

  // What is among `count` from `first` on, counted from there.
  Range within(int64_t first, int64_t count) const {
    const int64_t from = std::clamp(begin - first, int64_t{0}, count);
    return {from, std::clamp(end - first, from, count)};
  }
};

// From the first to the last of `count` for which holds(i).
template <class Holds>
Range spanned(int64_t count, const Holds& holds) {
  Range found{0, count};
  while (found.size() && !holds(found.begin)) ++found.begin;
  while (found.size() && !holds(found.end - 1)) --found.end;
  return found;
}

// out[first + place * out_step] is a sum over taps of what stands at in[place * in_step + offset].
struct Grid {
  Ints places, in, out, in_step, out_step, first;
  std::vector<Tap> taps;

  // The least offsets.
  Ints low() const {
    Ints least = taps[0].offset;
    for (const Tap& tap : taps)
      for (int d = 0; d < 3; ++d) least[d] = std::min(least[d], tap.offset[d]);
    return least;
  }

  // Of each tap, how many from it on are neighbours along a row.
  std::vector<int64_t> neighbours() const {
    std::vector<int64_t> found(taps.size(), 1);
    for (int64_t tap = int64_t(taps.size()) - 2; tap >= 0; --tap) {
      const Ints &own = taps[tap].offset, &next = taps[tap + 1].offset;
      if (next == Ints{own[0], own[1], own[2] + 1}) found[tap] += found[tap + 1];
    }
    return found;
  }

  // The rows of taps, where all columns of them have the same, one after another; else 0.
  int64_t tap_rows() const {
    if (taps.empty()) return 0;
    const auto above = [](const Tap& a, const Tap& b) { return a.offset[1] < b.offset[1]; };
    const auto [least, most] = std::minmax_element(taps.begin(), taps.end(), above);
    const int64_t first = least->offset[1], rows = most->offset[1] - first + 1;
    const int64_t columns = std::count_if(taps.begin(), taps.end(), [=](const Tap& tap) { return tap.offset[1] == first; });
    return columns * rows == int64_t(taps.size()) ? rows : 0;
  }

  // Whether places are the outputs, one after another.
  bool whole() const { return places == out && first == Ints{0, 0, 0} && out_step == Ints{1, 1, 1}; }

  // Whether places are read in such steps that few of those in a vector's reach are.
  bool far() const { return in_step[2] > 2; }

  // The places along a dimension for which an offset is inside the input.
  Range inside(int d, int64_t offset) const {
    const int64_t step = in_step[d];
    // Large kernels have many taps, and divisions take long.
    const auto steps = [=](int64_t n) { return step == 1 ? n : n / step; };
    const int64_t first = offset < 0 ? std::min(steps(step - 1 - offset), places[d]) : 0;
    return {first, std::clamp(offset < in[d] ? steps(in[d] - 1 - offset) + 1 : 0, first, places[d])};
  }

  // Whether of some places along a dimension an offset is inside the input, or between two that are.
  bool reads(int d, const Range& some, int64_t offset) const {
    return (some.end - 1) * in_step[d] + offset >= 0 && some.begin * in_step[d] + offset < in[d];
  }

  // Whether a tap is inside the input for all places.
  bool everywhere(const Tap& tap) const {
    for (int d = 0; d < 3; ++d)
      if (tap.offset[d] < 0 || (places[d] - 1) * in_step[d] + tap.offset[d] >= in[d]) return false;
    return true;
  }

  // Drops the taps that are outside the input for all places.
  void prune() {
    const auto outside = [&](const Tap& tap) {
      return !inside(0, tap.offset[0]).size() || !inside(1, tap.offset[1]).size() || !inside(2, tap.offset[2]).size();
    };
    taps.erase(std::remove_if(taps.begin(), taps.end(), outside), taps.end());
  }

  // All offsets along the first dimension, from the least on.
  std::vector<int64_t> depths() const {
    std::vector<int64_t> found;
    for (const Tap& tap : taps)
      if (std::find(found.begin(), found.end(), tap.offset[0]) == found.end()) found.push_back(tap.offset[0]);
    std::sort(found.begin(), found.end());
    return found;
  }

  // In steps of one: what a place of the input gives to places.
  Grid reversed() const {
    Grid found{in, places, in, in_step, in_step, {0, 0, 0}, taps};
    for (Tap& tap : found.taps)
      for (int64_t& at : tap.offset) at = -at;
    return found;
  }

  // A kernel of 1 in steps of 1 knows no rows.
  Grid flattened() const {
    Grid found = *this;
    const Ints one{1, 1, 1}, none{0, 0, 0};
    if (taps.size() == 1 && taps[0].offset == none && in_step == one && places == in && whole())
      found.places = found.in = found.out = Ints{1, 1, product(in)};
    return found;
  }
};

// Channels of a group, and by how much an element of the weight is apart from the next by input, output channel and group.
struct Channels {
  int64_t batch, groups, in, out, in_stride, out_stride, group_stride;

  // How many groups are to be joined for whole vectors of input channels.
  int64_t joined(int64_t lanes) const {
    int64_t found = 1;
    while (in * found < lanes && groups % (2 * found) == 0) found *= 2;
    return found;
  }

  // Elements of the kernel, which stand side by side.
  int64_t kernel() const { return std::min(in_stride, out_stride); }
};

// One grid with the taps and the most places of all.
inline Grid united(const std::vector<Grid>& grids) {
  Grid all = grids[0];
  for (size_t i = 1; i < grids.size(); ++i) {
    all.taps.insert(all.taps.end(), grids[i].taps.begin(), grids[i].taps.end());
    for (int d = 0; d < 3; ++d) all.places[d] = std::max(all.places[d], grids[i].places[d]);
  }
  return all;
}

// Strides, padding before the first element, and sizes of the kernel.
struct Geometry {
  Ints stride, padding, dilation, kernel;

  // All taps of the kernel, whose offsets `offset` gives by dimension, where it gives any.
  template <class Offset>
  std::vector<Tap> taps(const Offset& offset) const {
    std::vector<std::pair<int64_t, int64_t>> reached[3];
    for (int d = 0; d < 3; ++d)
      for (int64_t k = 0, at; k < kernel[d]; ++k)
        if (offset(d, k, &at)) reached[d].push_back({k, at});
    std::vector<Tap> found;
    for (const auto& [z, depth] : reached[0])
      for (const auto& [y, row] : reached[1])
        for (const auto& [x, column] : reached[2]) found.push_back({{depth, row, column}, (z * kernel[1] + y) * kernel[2] + x});
    return found;
  }

  Grid forward(const Ints& in, const Ints& out) const {
    auto offset = [&](int d, int64_t k, int64_t* at) { return *at = k * dilation[d] - padding[d], true; };
    return {out, in, out, stride, {1, 1, 1}, {0, 0, 0}, taps(offset)};
  }

  // Of the input's gradient, the places that are `first` more than a multiple of the stride.
  Grid backward(const Ints& gradient, const Ints& in, const Ints& first) const {
    auto offset = [&](int d, int64_t k, int64_t* at) {
      const int64_t from = first[d] + padding[d] - k * dilation[d];
      return *at = from / stride[d], from % stride[d] == 0;
    };
    Ints places;
    for (int d = 0; d < 3; ++d) places[d] = (in[d] - first[d] + stride[d] - 1) / stride[d];
    return {places, gradient, in, {1, 1, 1}, stride, first, taps(offset)};
  }
};

}  // namespace jnn
