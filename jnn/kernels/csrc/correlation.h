// Gradients by the weight as products of the output's gradient with inputs that have their channels last.
//
// All channels that stand at one place, and for neighbouring offsets of the kernel those of neighbouring places, follow each other: they
// are the columns of the product. Places are its terms, wherever they stand.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "channels_last.h"
#include "cut.h"
#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "transpose.h"
#include "vector.h"

namespace jnn::correlation {

// The most numbers of a slab's input, and the places that are summed up at a time.
constexpr int64_t kMost = 1 << 17, kPlaces = 512;
// The batch is summed up in so many parts at most, of so many numbers in all and of so many terms each: none depends on the threads, and
// so no sum does.
constexpr int64_t kParts = 16, kMostSums = 1 << 22, kTerms = 1024;
// While the sums of all parts are no more than these, parts have fewer terms: shorter sums err less.
constexpr int64_t kFewSums = 1 << 17, kFewTerms = 64;
// So much wider may products be by what fills columns up before what places read is copied, so many of them at a time.
constexpr double kFilled = 1.2;
constexpr int64_t kPacked = 128;
// The most sums that a task has at once of a batch that is one part: they are written as weights while they are in its core's cache.
constexpr int64_t kOwnSums = 1 << 16;
// The most numbers of inputs that are put in order for all tasks at once.
constexpr int64_t kMostKept = 1 << 23;

// Offsets of the kernel that read neighbouring channels: `taps` of them from the first on.
struct Columns {
  int64_t first, taps, from, at;
};

// The columns of a grid's products, each run of them filled up to whole vectors, and how many numbers they make, of inputs of `sizes`.
template <class T>
std::vector<Columns> columns_of(const Grid& grid, const Reach& reach, const Ints& sizes, int64_t channels, int64_t* width) {
  std::vector<Columns> found;
  int64_t at = 0;
  for (size_t i = 0; i < grid.taps.size(); ++i) {
    const Ints& tap = grid.taps[i].offset;
    const int64_t from = flat(sizes, tap[0] - reach.low(0), tap[1] - reach.low(1), tap[2] - reach.low(2)) * channels;
    if (i && from == found.back().from + found.back().taps * channels) {
      ++found.back().taps;
    } else {
      at = found.empty() ? 0 : at + whole<T>(found.back().taps * channels);
      found.push_back({static_cast<int64_t>(i), 1, from, at});
    }
  }
  *width = at + whole<T>(found.back().taps * channels);
  return found;
}

// Where the places of a slab stand.
template <class T>
std::vector<int32_t> offsets_of(const Slab& slab, const ChannelsLast<T>& layout) {
  const Reach& reach = layout.reach();
  std::vector<int32_t> found;
  for (int64_t i = 0; i < slab.images; ++i)
    for (int64_t z = 0; z < slab.size[0]; ++z)
      for (int64_t y = 0; y < slab.size[1]; ++y)
        for (int64_t x = 0; x < slab.size[2]; ++x)
          found.push_back(i * layout.image() + layout.at(z * reach.step(0), y * reach.step(1), x * reach.step(2)));
  return found;
}

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

// The columns of a product, and how many numbers they make with what fills them up. They are `packed` side by side where they would be
// filled up for the most part else: what places read is copied to that end.
struct Row {
  std::vector<Columns> columns;
  int64_t width;
  bool packed;
};

template <class T>
Row row_of(const Grid& grid, const Reach& reach, const Ints& sizes, int64_t channels) {
  Row row{{}, 0, false};
  row.columns = columns_of<T>(grid, reach, sizes, channels, &row.width);
  const int64_t side_by_side = whole<T>(grid.taps.size() * channels);
  if (row.width <= kFilled * side_by_side) return row;
  int64_t at = 0;
  for (Columns& run : row.columns) run.at = at, at += run.taps * channels;
  return {row.columns, side_by_side, true};
}

// The products of `terms` of a slab's places, from the k-th on, as the share's sums, (outputs, width), or what is added to them.
template <class T>
void add_product(const Share& share, int64_t places, int64_t k, int64_t terms, const T* slopes, const T* input, const int32_t* offsets,
                 int64_t columns, bool add, T* sums, int64_t width) {
  for (int64_t j = 0; j < columns; j += kTileColumns<T>) {
    const auto& tiles = columns - j > kLanes<T> ? kTiles<T> : kNarrowTiles<T>;
    for (int64_t r = share.first; r < share.last; ++r) {
      const int64_t count = share.panels.size(r);
      tiles[count - 1](terms, slopes + share.row(r) * places + k * count, count, input + j, offsets, sums + share.row(r) * width + j, width,
                       add, nullptr);
    }
  }
}

// Those of a slab, which are the first or are added to the share's sums, (outputs, row.width).
template <class T>
void add_products(const Row& row, const Share& share, int64_t channels, const T* slopes, const T* input,
                  const std::vector<int32_t>& offsets, bool first, T* sums) {
  const int64_t places = offsets.size();
  if (!row.packed) {
    for (int64_t k = 0; k < places; k += kPlaces)
      for (const Columns& run : row.columns)
        add_product(share, places, k, std::min(kPlaces, places - k), slopes, input + run.from, offsets.data() + k, run.taps * channels,
                    !first || k, sums + run.at, row.width);
    return;
  }
  const auto patches = memory<T>(kPacked * row.width + kLanes<T>);
  std::vector<int32_t> own(kPacked);
  for (int64_t k = 0; k < kPacked; ++k) own[k] = k * row.width;
  for (int64_t k = 0; k < places; k += kPacked) {
    const int64_t terms = std::min(kPacked, places - k);
    // What is written behind the last number of a run is overwritten.
    for (int64_t i = 0; i < terms; ++i)
      for (const Columns& run : row.columns)
        for (int64_t j = 0; j < run.taps * channels; j += kLanes<T>)
          store(patches.get() + i * row.width + run.at + j, load(input + offsets[k + i] + run.from + j));
    add_product(share, places, k, terms, slopes, patches.get(), own.data(), row.width, !first || k, sums, row.width);
  }
}

// The parts that the batch is summed up in.
inline int64_t parts_of(const Channels& c, const Grid& grid) {
  const int64_t sums = c.groups * c.out * c.in * grid.taps.size(), terms = c.batch * product(grid.places);
  const int64_t of_many_terms = std::min(terms / kTerms, kMostSums / sums), of_few = std::min(terms / kFewTerms, kFewSums / sums);
  return std::clamp(std::min(std::max(of_many_terms, of_few), kParts / c.groups), int64_t{1}, kParts);
}

// How the work is shared out: the batch in parts, of some slabs each, and a group's outputs in shares, of some panels each.
template <class T>
struct Plan {
  Plan(const Channels& c, const Grid& grid, int64_t threads)
      : groups(c.groups),
        reach(grid),
        wanted(parts_of(c, grid)),
        cut(reach.cut(grid, c.batch, c.in, kMost, wanted)),
        numbers(ChannelsLast<T>::numbers(reach.input(cut.size), c.in, cut)),
        row(row_of<T>(grid, reach, reach.input(cut.size), c.in)),
        parts(cut.slabs(), (cut.slabs() + wanted - 1) / wanted),
        panels(c.out, kMostRows),
        shares(panels.parts, most_of_share(threads)) {}

  int64_t tasks() const { return parts.parts * groups * shares.parts; }
  int64_t numbers_kept() const { return cut.slabs() * groups * numbers; }
  // Whether the batch is one part; and whether inputs are put in order once, as several shares read them.
  bool alone() const { return parts.parts == 1; }
  bool keeps() const { return shares.parts > 1 && numbers_kept() <= kMostKept; }

  const int64_t groups;
  const Reach reach;
  const int64_t wanted;
  const Cut cut;
  // Those of a slab's input.
  const int64_t numbers;
  const Row row;
  const Parts parts, panels, shares;

 private:
  // How many panels of outputs a task has.
  int64_t most_of_share(int64_t threads) const {
    int64_t most = panels.parts * groups * parts.parts / (kTasksAThread * threads);
    if (alone() && numbers_kept() <= kMostKept) most = std::min(most, kOwnSums / (kMostRows * row.width));
    return std::clamp(most, int64_t{1}, panels.parts);
  }
};

template <class T>
class Correlation {
 public:
  Correlation(const Channels& c, const Grid& grid, int64_t threads)
      : c_(c), grid_(grid), plan_(c, grid, threads), layout_(grid, c.in, plan_.cut) {}

  void run(Pool& pool, const T* g, const T* x, T* w) const {
    const auto inputs = plan_.keeps() ? kept(pool, x) : nullptr;
    const auto sums = memory<T>(plan_.alone() ? 0 : plan_.parts.parts * a_part() + kLanes<T>);
    parallel(pool, plan_.tasks(), [&](int64_t task) {
      const int64_t part = task / plan_.shares.parts / c_.groups, group = task / plan_.shares.parts % c_.groups;
      const Share share{plan_.panels, plan_.shares.begin(task % plan_.shares.parts), plan_.shares.begin(task % plan_.shares.parts + 1)};
      const int64_t begin = plan_.panels.begin(share.first), outputs = plan_.panels.begin(share.last) - begin,
                    first = group * c_.out + begin;
      const auto own = memory<T>(plan_.alone() ? outputs * plan_.row.width + kLanes<T> : 0);
      T* to = plan_.alone() ? own.get() : sums.get() + part * a_part() + first * plan_.row.width;
      add_slabs(part, group, share, g, x, inputs.get(), to);
      for (int64_t o = 0; plan_.alone() && o < outputs; ++o) gather(to + o * plan_.row.width, first + o, w);
    });
    if (!plan_.alone()) add_parts(pool, sums.get(), w);
  }

 private:
  int64_t a_part() const { return c_.groups * c_.out * plan_.row.width; }

  void fill(int64_t slab, int64_t group, const T* x, T* to) const {
    layout_.fill(plan_.cut.slab(slab), x + group * c_.in * product(grid_.in), c_.groups * c_.in, to);
  }

  // The inputs of all slabs, by group.
  Memory<T> kept(Pool& pool, const T* x) const {
    auto inputs = memory<T>(plan_.numbers_kept());
    parallel(pool, plan_.cut.slabs() * c_.groups,
             [&](int64_t i) { fill(i / c_.groups, i % c_.groups, x, inputs.get() + i * plan_.numbers); });
    return inputs;
  }

  // The share's sums over the slabs of a part.
  void add_slabs(int64_t part, int64_t group, const Share& share, const T* g, const T* x, const T* inputs, T* sums) const {
    const int64_t outputs = plan_.panels.begin(share.last) - plan_.panels.begin(share.first);
    const auto own = memory<T>(inputs ? 0 : plan_.numbers), slopes = memory<T>(outputs * plan_.cut.most_images * product(plan_.cut.size));
    for (int64_t s = plan_.parts.begin(part); s < plan_.parts.begin(part + 1); ++s) {
      const Slab slab = plan_.cut.slab(s);
      if (!inputs) fill(s, group, x, own.get());
      order(grid_, slab, share, g + group * c_.out * product(grid_.places), c_.groups * c_.out, slopes.get());
      const T* input = inputs ? inputs + (s * c_.groups + group) * plan_.numbers : own.get();
      add_products(plan_.row, share, c_.in, slopes.get(), input, offsets_of(slab, layout_), s == plan_.parts.begin(part), sums);
    }
  }

  void add_parts(Pool& pool, T* sums, T* w) const {
    const Parts outputs(c_.groups * c_.out, kMostRows);
    parallel(pool, outputs.parts, [&](int64_t i) {
      for (int64_t o = outputs.begin(i); o < outputs.begin(i + 1); ++o) {
        T* first = sums + o * plan_.row.width;
        for (int64_t part = 1; part < plan_.parts.parts; ++part)
          for (int64_t j = 0; j < plan_.row.width; ++j) first[j] += first[part * a_part() + j];
        gather(first, o, w);
      }
    });
  }

  // The weights of an output from its sums.
  void gather(const T* sums, int64_t output, T* w) const {
    const int64_t taps = grid_.taps.size();
    w += output * c_.in * taps;
    if (taps == 1) {
      std::copy_n(sums, c_.in, w);
      return;
    }
    std::vector<const T*> rows;
    for (const Columns& run : plan_.row.columns)
      for (int64_t t = 0; t < run.taps; ++t) rows.push_back(sums + run.at + t * c_.in);
    for (int64_t first = 0; first < taps; first += kLanes<T>)
      interleave(rows.data() + first, std::min<int64_t>(kLanes<T>, taps - first), c_.in, w + first, taps);
  }

  const Channels& c_;
  const Grid& grid_;
  const Plan<T> plan_;
  const ChannelsLast<T> layout_;
};

// g (N, O, *places) and x (N, C, *in) give w (O, C / groups, *K).
template <class T>
void correlate(Pool& pool, const Channels& c, const Grid& grid, const T* g, const T* x, T* w) {
  Correlation<T>(c, grid, pool.num_threads()).run(pool, g, x, w);
}

}  // namespace jnn::correlation
