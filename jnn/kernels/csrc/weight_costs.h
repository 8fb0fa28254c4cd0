// About how long the forms of a convolution's gradient by the weight take, in cycles of a processor of 3 GHz.
//
// Fitted to 650 random convolutions in all forms. Of 150 others (`benchmarks/forms.py --seed 1`), what is chosen takes 1.03 times as long
// as the best form by the geometric mean and 1.8 times at most; by sizes alone, as it was before, 1.21 and 29.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "correlation.h"
#include "depthwise.h"
#include "geometry.h"
#include "places.h"
#include "products.h"
#include "slabs.h"
#include "transpose.h"
#include "vector.h"

namespace jnn {

template <class T>
class WeightCosts {
 public:
  WeightCosts(const Channels& c, const Grid& grid)
      : c_(c),
        grid_(grid),
        places_(double(c.batch) * product(grid.places)),
        taps_(grid.taps.size()),
        weights_(c.groups * c.out * c.in * taps_) {}

  // Inputs and slopes that are transposed by squares, products, and sums that are added up and put where weights are.
  double correlation() const {
    const correlation::Plan<T> plan(c_, grid_, kThreads);
    const auto& [columns, width, packed] = plan.row;
    const double panels = plan.panels.parts, slabs = plan.cut.slabs(), faster = shared(plan.tasks());
    const double fills = plan.keeps() ? 1 : plan.shares.parts, filling = plan.keeps() ? shared(slabs * c_.groups) : faster;
    double tiles = 0, calls = 0, copied = 0;
    for (const correlation::Columns& run : columns) copied += vectors(run.taps * c_.in);
    if (packed) count(width, &tiles, &calls);
    for (const correlation::Columns& run : columns)
      if (!packed) count(run.taps * c_.in, &tiles, &calls);
    const double ordered =
        c_.out > kFew ? 150.0 * panels * c_.batch * grid_.places[0] * vectors(grid_.places[1] * grid_.places[2]) : 8.3 * c_.out * places_;
    const double gathered = taps_ > 1 ? 20.0 * c_.out * taps_ + 6.7 * c_.out * c_.in * vectors(taps_) : 0;
    return c_.groups * (filled(plan) * fills / filling + gathered / (plan.alone() ? faster : kThreads)) +
           c_.groups *
               (ordered + 1.85 * places_ * tiles * tile_cycles(c_.out) + (packed ? 5.7 * places_ * copied : 0) +
                40.0 * slabs * panels * calls) /
               faster +
           (plan.alone() ? 0 : 8.3 * plan.parts.parts * c_.groups * c_.out * width / kLanes<T>)+started(1600, plan.tasks());
  }

  // Rows of inputs, and of slopes for each share of the inputs, and dots of them. What is read in long steps is read number by number.
  double slabs() const {
    const Parts shares = slabs::shares(c_, grid_, kThreads);
    const slabs::Layout<T> layout = slabs::layout_of<T>(c_, grid_, shares);
    const Slab slab = layout.cut().slab(0);
    const int64_t tasks = c_.groups * shares.parts, count = layout.cut().slabs(), columns = shares.size(0) * taps_;
    const double row = layout.row(), rows = layout.channel() / row * vectors(row);
    const double dots = cycles_of_dots(c_.out, columns) * vectors(layout.whole(slab));
    const double calls = Parts(c_.out, kMostDots).parts * Parts(columns, kMostDots).parts;
    return (count * (c_.groups * c_.in * rows * (grid_.far() ? 87.0 : 8.7) + tasks * (1.85 * dots + 20.0 * calls) + 6.5 * weights_) +
            7.0 * tasks * c_.out * c_.batch * grid_.places[0] * grid_.places[1] * vectors(grid_.places[2])) /
               shared(tasks) +
           started(1400, tasks);
  }

  // Of groups of one channel: squares that are transposed and products of vectors.
  double channels() const {
    if (c_.in > 1 || c_.groups == 1) return std::numeric_limits<double>::infinity();
    const Reach reach(grid_);
    const Cut cut = depthwise::cut_of<T>(c_, grid_);
    const int64_t blocks = depthwise::blocks<T>(c_), parts = depthwise::parts_of(cut, blocks).parts;
    const double read = c_.batch * cut.depths.parts * cut.rows.parts * product(reach.input(cut.size));
    const double chunks = Parts(taps_, depthwise::kTaps).parts;
    return blocks * (8.1 * read + c_.out * places_ * (3.3 + 0.72 * taps_ + 4.8 * chunks)) / shared(blocks * parts) + 1.3 * weights_ +
           19.0 * blocks * parts * c_.out * taps_ + started(0, blocks * parts);
  }

  // Rows that are gathered, slopes that are copied, and their products, of which few are one thread's; group after group.
  double places() const {
    const double columns = c_.in * taps_, lines = places::Rows<T>(c_, grid_, taps_).lines();
    const double faster = affine::alone(c_.out, columns, places_) ? 1 : kThreads;
    return c_.groups * (places_ * lines * (4.3 * c_.in + 36.0) / kThreads + 12.0 * c_.out * c_.batch * vectors(product(grid_.places)) +
                        (2.0 * places_ * Panels<T>{int64_t(columns)}.count() * tile_cycles(c_.out, kStandingRows) +
                         14.0 * places_ * columns / kLanes<T> + 6.3 * c_.out * columns / kLanes<T>) /
                            faster +
                        850);
  }

 private:
  // What it costs to begin a task, and to have another thread's help.
  static double started(double one, int64_t tasks) { return one * tasks / shared(tasks) + (tasks > 1 ? 12000 : 0); }
  static double vectors(double numbers) { return std::ceil(numbers / kLanes<T>); }

  // Tiles of a run of columns, a narrow one as what it takes of a whole one, and the calls they are.
  static void count(int64_t columns, double* tiles, double* calls) {
    const int64_t rest = columns % kTileColumns<T>;
    *tiles += columns / kTileColumns<T> + (rest > kLanes<T> ? 1.0 : rest ? 0.6 : 0.0);
    *calls += Panels<T>{columns}.count();
  }

  // The inputs of all slabs of a group, with zeros around.
  double filled(const correlation::Plan<T>& plan) const {
    const auto& [reach, cut] = std::tie(plan.reach, plan.cut);
    const double slabs = c_.batch * cut.depths.parts * cut.rows.parts, all = slabs * product(reach.input(cut.size));
    const double inside = std::min(all, double(c_.batch) * product(grid_.in)), zeros = c_.in * (all - inside) / kLanes<T>;
    if (c_.in <= kFew) return 4.0 * inside * c_.in + zeros;
    const bool through = reach.skip(1) == 1 && reach.skip(2) == 1;
    const double rows = through ? vectors(grid_.in[1] * grid_.in[2]) : grid_.in[1] * vectors(grid_.in[2]);
    return vectors(c_.in) * (4.7 * inside + 39.0 * c_.batch * grid_.in[0] * rows) + zeros;
  }

  // Of a vector of places, in all tiles: those of few rows and columns wait for what they load, or for their own sums.
  static double cycles_of_dots(int64_t rows, int64_t columns) {
    const Parts outputs(rows, kMostDots), dots(columns, kMostDots);
    double all = 0;
    for (int64_t i = 0; i < outputs.parts; ++i) {
      const double a = outputs.size(i), b = double(columns) / dots.parts;
      all += dots.parts * std::max({a * b / 2, (a + b) / 2, 4.0});
    }
    return all;
  }

  const Channels& c_;
  const Grid& grid_;
  const double places_;
  const int64_t taps_;
  const double weights_;
};

}  // namespace jnn
