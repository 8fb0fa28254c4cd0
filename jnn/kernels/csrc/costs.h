// About how long the forms of a convolution take, in cycles of a product of vectors.
//
// What a form does is counted; what each of these things costs was fitted to 960 random convolutions in all forms, on both levels, and
// what is read in steps again to 200 whose steps are often as long as their kernels. Of these what is chosen takes 1.04 times as long as
// the best form by the geometric mean and 2.3 times at most (1.08 and 3.0 before); of phases of gradients by the input, 1.04 and 1.9 times,
// and with columns 1.03 of the better and 1.9 at most (without 1.21). What it costs to put weights in order was fitted to 410 convolutions
// of up to 150 places: of 150 others, drawn afterwards, what is chosen takes 1.00 of the best forward and 0.96 transposed, for which other
// ways than these forms may be taken (1.10 and 1.17 before). Places were fitted to 270 of up to 200 of them: of 150 others, what is chosen
// takes 1.03 of the best form (1.37 without places). Columns were fitted to 250 in steps of one: of 250 others, what is chosen takes 1.03
// of the best form, as of 220 gradients by the input. Lanes that are groups were fitted to 300: what is chosen takes 1.05.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>

#include "affine.h"
#include "columns.h"
#include "depthwise.h"
#include "geometry.h"
#include "matrices.h"
#include "outputs.h"
#include "patches.h"
#include "places.h"
#include "products.h"
#include "stacks.h"
#include "transpose.h"
#include "vector.h"

namespace jnn {

template <class T>
class Costs {
 public:
  Costs(const Channels& c, const Grid& grid) : c_(c), grid_(grid), low_(grid.taps.empty() ? Ints{} : grid.low()) {
    for (const Tap& tap : grid.taps)
      for (int d = 0; d < 3; ++d) reach_[d] = std::max(reach_[d], tap.offset[d] - low_[d]);
    for (int d = 0; d < 3; ++d) reach_[d] /= grid.in_step[d];
  }

  // A row is one thread's. Rows that are copied, for each phase of the steps, rows that are written, and products for what lies between
  // rows too.
  double slabs() const {
    const double pitch = grid_.places[2] + reach_[2], rows = (grid_.places[0] + reach_[0]) * (grid_.places[1] + reach_[1]);
    const double copied = grid_.far() ? 60 : grid_.in_step[2] == 2 ? 25 : 15;
    const double tiles = grid_.places[0] * std::ceil((pitch * grid_.places[1] - reach_[2]) / kTileColumns<T>);
    const bool wide = c_.out <= kWideRows && tiles >= kWide * grid_.places[0];
    const double read = copied * c_.in * phases() * rows * vectors(pitch), written = 20.0 * c_.out * lines() * vectors(grid_.places[2]);
    // Stacks leave out the depths that are outside the image. Fitted to 15 convolutions, of which 0.95 to 1.2 of the better of stacks and
    // lanes that are groups is chosen.
    const double one = in_stacks(c_, grid_)
                           ? 0.72 * c_.in * lines() * vectors(grid_.places[2]) * inside(true) + 0.63 * (read + written) + 400
                           : tiles * c_.in * taps() * (wide ? 1.1 * c_.out : tile_cycles(c_.out)) + read + written;
    return ordered() + (c_.groups * c_.batch * lines() > 1 ? 1 : kThreads) * c_.groups * c_.batch * (one + in_steps());
  }

  // Runs of a row that are copied for each tap, and what is read and written.
  double patches() const {
    const double places = product(grid_.places), copied = lines() * vectors(grid_.places[2]) * apart();
    const double tiles = places < kTileColumns<T> ? places / kTileColumns<T> : std::ceil(places / kTileColumns<T>);
    return ordered() + c_.groups * c_.batch *
                           (products(tiles) + 7.0 * c_.in * taps() * copied + (grid_.whole() ? 30.0 : 50.0) * c_.out * vectors(places) +
                            10.0 * c_.in * read() + in_steps());
  }

  // Products for what tiles of places have inside the image, of joined groups; and what grids of one input read once.
  double outputs() const {
    const double joined = c_.joined(kLanes<T>), in = c_.in * joined, out = vectors(c_.out * joined);
    return c_.groups / joined *
               (c_.batch * product(grid_.places) * (0.55 * in * out * terms() + 4.5 * inside() * vectors(in) + 45.0 * out) +
                11.0 * in * taps() * out) +
           kGrid;
  }
  double outputs_read() const { return c_.groups * c_.in * (27.0 * c_.batch * read() + 16.0 * c_.kernel()); }

  // Of groups of one channel: places of a row by vectors of groups, and what is transposed and put in order.
  double channels() const {
    const double parts = lines() * std::ceil(grid_.places[2] / double(depthwise::kPlaces));
    return vectors(c_.groups) *
           (c_.batch * (c_.out * (parts * (9.0 * inside() + 60.0) + 5.4 * product(grid_.places)) + 8.0 * product(grid_.in)) +
            19.0 * c_.out * taps());
  }

  // Rows that are gathered line by line, and products of them with weights as they lie or, of many, in order.
  double places() const {
    const int64_t rows = c_.batch * product(grid_.places), depth = c_.in * c_.kernel();
    const double sums = double(rows) * c_.out, gathered = places::Rows<T>(c_, grid_, c_.kernel()).cost();
    const Parts tiles(rows, kStandingRows);
    const double products =
        !places::across(c_) && affine::by_rows(rows, c_.out, depth)
            ? sums * (1.4 * depth / kTileColumns<T> + 11.0)
            : depth * (0.95 * tile_cycles(tiles.size(tiles.parts - 1)) * tiles.parts * Panels<T>{c_.out}.count() + 0.5 * c_.out);
    const double far = 2.0 * std::max<int64_t>(0, rows * depth - kNear);
    const double one = rows * c_.in * gathered + products + 1.8 * sums + far;
    return c_.groups > 1 ? c_.groups * (kSerial * one + kGroup) : one;
  }

  // For the grid of the convolution whose gradient by the input this is: products, places that are added where they belong, and what is
  // packed.
  double columns() const {
    const double rows = inside() * lines();
    const double blocks = std::ceil(double(c_.batch) / columns::images_at_once(c_, grid_));
    const double products = columns::cost<T>(c_, grid_, columns::across<T>(c_, grid_));
    const double added = grid_.in_step[2] == 1 ? 9.0 * vectors(grid_.places[2]) : 5.0 + 2.0 * grid_.places[2];
    return c_.groups * (blocks * products + c_.batch * c_.out * (rows * added + 8.0 * vectors(product(grid_.in))) +
                        8.0 * c_.batch * c_.in * vectors(product(grid_.places)));
  }

 private:
  // What a grid more of outputs and a group more of places cost, if they have next to nothing to do. Places take group after group, others
  // all at once.
  static constexpr double kGrid = 3000, kGroup = 6000, kSerial = 2.2;

  // Numbers of rows that stay in a core's own cache. More take up to four times as long where other programs fill the common one.
  static constexpr int64_t kNear = 1 << 17;

  double taps() const { return grid_.taps.size(); }
  double phases() const {
    if (grid_.in_step == Ints{1, 1, 1}) return 1;
    std::set<Ints> found;
    for (const Tap& tap : grid_.taps)
      found.insert({(tap.offset[0] - low_[0]) % grid_.in_step[0], (tap.offset[1] - low_[1]) % grid_.in_step[1],
                    (tap.offset[2] - low_[2]) % grid_.in_step[2]});
    return found.size();
  }
  // Weights that are put in order, those of other phases too.
  double ordered() const { return c_.groups * c_.in * (2.0 * c_.kernel() * c_.out + 10.0 * taps()); }
  double lines() const { return grid_.places[0] * grid_.places[1]; }
  double read() const { return double(product(grid_.in)) / kLanes<T>; }
  // In long steps numbers are read one by one or, of taps that are neighbours, by squares that are transposed.
  double apart() const {
    if (!grid_.far()) return grid_.in_step[2];
    const int64_t together = std::min<int64_t>(kLanes<T>, grid_.neighbours()[0]);
    return together > kFew ? std::max(1.0, 14.0 / together) : 2.0 * grid_.in_step[2];
  }
  // The taps whose rows are inside the image, on the average of places, and those whose depths are.
  double inside(bool depths_alone = false) const {
    double found = 0;
    for (const Tap& tap : grid_.taps)
      found += double(grid_.inside(0, tap.offset[0]).size()) / grid_.places[0] *
               (depths_alone ? 1 : double(grid_.inside(1, tap.offset[1]).size()) / grid_.places[1]);
    return found;
  }

  // The taps that a place is multiplied for, on the average: those from the first to the last that are inside the image for any of the rows
  // of a product.
  double terms() const {
    std::vector<std::pair<Tap, int64_t>> runs;
    for (const Tap& tap : grid_.taps) {
      const bool same = !runs.empty() && runs.back().first.offset[0] == tap.offset[0] && runs.back().first.offset[1] == tap.offset[1];
      if (same) ++runs.back().second;
      else runs.push_back({tap, 1});
    }
    const double images = std::clamp(outputs::kMost / (product(grid_.places) * c_.in * taps()), 1.0, double(c_.batch));
    const Parts tiles(lines(), std::max<int64_t>(1, kMostRows / (images * grid_.places[2])));
    double all = 0;
    for (int64_t i = 0; i < tiles.parts; ++i) {
      const int64_t rows = grid_.places[1], first = tiles.begin(i), last = tiles.begin(i + 1) - 1;
      const bool one = first / rows == last / rows;
      int64_t from = -1, to = 0, count = 0;
      for (const auto& [tap, length] : runs) {
        const bool read = grid_.reads(0, {first / rows, last / rows + 1}, tap.offset[0]) &&
                          grid_.reads(1, {one ? first % rows : 0, one ? last % rows + 1 : rows}, tap.offset[1]);
        if (read && from < 0) from = count;
        count += length;
        if (read) to = count;
      }
      all += double(to - std::max<int64_t>(from, 0)) * tiles.size(i);
    }
    return all / lines();
  }

  // What is written number by number.
  double in_steps() const { return grid_.out_step[2] > 1 ? 1.5 * c_.out * product(grid_.places) : 0; }
  static double vectors(double numbers) { return std::ceil(numbers / kLanes<T>); }

  // Of all channels and tiles of places.
  double products(double tiles) const {
    return tiles * c_.in * (patches::leaves_out(c_, grid_.taps.size()) ? inside(true) : taps()) * tile_cycles(c_.out);
  }

  const Channels& c_;
  const Grid& grid_;
  const Ints low_;
  Ints reach_{0, 0, 0};
};

}  // namespace jnn
