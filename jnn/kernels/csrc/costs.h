// About how long the forms of a convolution take, in cycles of a product of vectors.
//
// What a form does is counted; what each of these things costs was fitted to 740 random convolutions in all forms, on both levels. What is
// chosen by it takes 1.04 times as long as the best form by the geometric mean, and twice as long at most.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <utility>

#include "geometry.h"
#include "products.h"
#include "vector.h"

namespace jnn {

template <class T>
class Costs {
 public:
  Costs(const Channels& c, const Grid& grid) : c_(c), grid_(grid), low_(grid.taps.empty() ? Ints{} : grid.low()) {
    for (const Tap& tap : grid.taps)
      for (int d = 0; d < 3; ++d) reach_[d] = std::max(reach_[d], (tap.offset[d] - low_[d]) / grid.in_step[d]);
  }

  // Rows that are copied, for each phase of the steps, rows that are written, and products for what lies between rows too.
  double slabs() const {
    std::set<Ints> phases;
    for (const Tap& tap : grid_.taps)
      phases.insert({(tap.offset[0] - low_[0]) % grid_.in_step[0], (tap.offset[1] - low_[1]) % grid_.in_step[1],
                     (tap.offset[2] - low_[2]) % grid_.in_step[2]});
    const double pitch = grid_.places[2] + reach_[2], rows = (grid_.places[0] + reach_[0]) * (grid_.places[1] + reach_[1]);
    const double tiles = grid_.places[0] * std::ceil((pitch * grid_.places[1] - reach_[2]) / kTileColumns<T>);
    return c_.groups * c_.batch *
           (products(tiles) + 15.0 * c_.in * phases.size() * rows * vectors(pitch) + 20.0 * c_.out * lines() * vectors(grid_.places[2]));
  }

  // Runs of a row that are copied for each tap, and what is read and written.
  double patches() const {
    const double places = product(grid_.places), copied = lines() * vectors(grid_.places[2]) * (grid_.in_step[2] > 1 ? 2 : 1);
    const double tiles = places < kTileColumns<T> ? places / kTileColumns<T> : std::ceil(places / kTileColumns<T>);
    return c_.groups * c_.batch *
           (products(tiles) + 5.0 * c_.in * taps() * copied + 55.0 * c_.out * vectors(places) + 28.0 * c_.in * read());
  }

  // Products for what is inside the image only; of groups that are joined there are more.
  double outputs() const {
    const double joined = c_.joined(kLanes<T>), in = c_.in * joined, out = vectors(c_.out * joined), places = product(grid_.places);
    double inside = 0;
    std::set<std::pair<int64_t, int64_t>> rows;
    for (const Tap& tap : grid_.taps) {
      inside += double(grid_.inside(0, tap.offset[0]).size()) / grid_.places[0] * grid_.inside(1, tap.offset[1]).size() / grid_.places[1];
      rows.insert({tap.offset[0], tap.offset[1]});
    }
    const double a_row = vectors(in * taps() / std::max<size_t>(1, rows.size()));
    const double split = c_.in * c_.joined(kLanes<T>) % kLanes<T> ? rows.size() * a_row : 0;
    return c_.groups / joined * c_.batch *
           (places * (0.85 * inside * in * out + 4.0 * inside * vectors(in) + 38.0 * out + 21.0 * split) + 38.0 * in * read());
  }

 private:
  double taps() const { return grid_.taps.size(); }
  double lines() const { return grid_.places[0] * grid_.places[1]; }
  double read() const { return double(product(grid_.in)) / kLanes<T>; }
  static double vectors(double numbers) { return std::ceil(numbers / kLanes<T>); }

  // Of all channels and tiles of places. Tiles of few outputs wait for what they load.
  double products(double tiles) const {
    const Parts rows(c_.out, kMostRows);
    double each = 0;
    for (int64_t r = 0; r < rows.parts; ++r) each += std::max(rows.size(r) * 1.0, rows.size(r) / 2.0 + 2);
    return tiles * c_.in * taps() * each;
  }

  const Channels& c_;
  const Grid& grid_;
  const Ints low_;
  Ints reach_{0, 0, 0};
};

}  // namespace jnn
