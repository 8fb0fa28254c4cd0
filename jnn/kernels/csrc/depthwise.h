// Convolutions of groups of one channel whose lanes are channels: of kernels of some size, in steps, and on small images.
//
// Inputs are copied with their channels last; every product then is of whole vectors that cross no line of the cache, and rows of the
// kernel that are outside the image are left out.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "channels_last.h"
#include "cut.h"
#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "tasks.h"
#include "transpose.h"
#include "vector.h"

namespace jnn::depthwise {

// The most numbers of a slab's input, which stays in the first cache.
constexpr int64_t kMost = 1 << 13;
// So many places of a row, and offsets of the kernel in a gradient by the weight, have their sums in registers.
constexpr int kPlaces = 8, kTaps = 10;
// The batch is summed up in so many parts, which do not depend on the threads, as long as there are few channels.
constexpr int64_t kParts = 8;

// to[i * to_step] = first + sum over t of weights[t] * from[offsets[t] + i * step], vectors all.
template <class T, int places>
void row(const T* first, const T* from, int64_t step, const int32_t* offsets, int64_t taps, const T* weights, T* to, int64_t to_step) {
  Vector<T> sums[places];
#pragma GCC unroll 8
  for (int i = 0; i < places; ++i) sums[i] = load(first);
  for (int64_t t = 0; t < taps; ++t) {
    const Vector<T> weight = load(weights + t * kLanes<T>);
    const T* at = from + offsets[t];
#pragma GCC unroll 8
    for (int i = 0; i < places; ++i) sums[i] += weight * load(at + i * step);
  }
#pragma GCC unroll 8
  for (int i = 0; i < places; ++i) store(to + i * to_step, sums[i]);
}

// sums[t] += sum over rows and columns of g[row][column] * x[offsets[t] + row * x_row + column * x_step], vectors all.
template <class T, int taps>
void dots(Ints rows, int64_t columns, const T* g, Ints g_row, const T* x, Ints x_row, int64_t x_step, const int32_t* offsets, T* to) {
  Vector<T> sums[taps];
#pragma GCC unroll 16
  for (int t = 0; t < taps; ++t) sums[t] = load(to + t * kLanes<T>);
  for (int64_t z = 0; z < rows[0]; ++z)
    for (int64_t y = 0; y < rows[1]; ++y) {
      const T* slopes = g + z * g_row[0] + y * g_row[1];
      const T* values = x + z * x_row[0] + y * x_row[1];
      for (int64_t i = 0; i < columns; ++i, slopes += kLanes<T>, values += x_step) {
        const Vector<T> slope = load(slopes);
#pragma GCC unroll 16
        for (int t = 0; t < taps; ++t) sums[t] += slope * load(values + offsets[t]);
      }
    }
#pragma GCC unroll 16
  for (int t = 0; t < taps; ++t) store(to + t * kLanes<T>, sums[t]);
}

template <class T>
using Row = void (*)(const T*, const T*, int64_t, const int32_t*, int64_t, const T*, T*, int64_t);
template <class T>
using Dots = void (*)(Ints, int64_t, const T*, Ints, const T*, Ints, int64_t, const int32_t*, T*);
template <class T, size_t... i>
constexpr std::array<Row<T>, sizeof...(i)> rows_of(std::index_sequence<i...>) {
  return {row<T, i + 1>...};
}
template <class T, size_t... i>
constexpr std::array<Dots<T>, sizeof...(i)> dots_of(std::index_sequence<i...>) {
  return {dots<T, i + 1>...};
}
template <class T>
inline constexpr auto kRowsOf = rows_of<T>(std::make_index_sequence<kPlaces>());
template <class T>
inline constexpr auto kDotsOf = dots_of<T>(std::make_index_sequence<kTaps>());

// The taps of a grid in the order of their offsets, where they read of channels-last inputs, and for which depths and rows of places that
// is inside the image.
template <class T>
struct Taps {
  Grid grid;
  std::vector<int32_t> offsets;
  std::vector<Range> depths, rows;

  Taps(const Grid& given, const ChannelsLast<T>& layout) : grid(given) {
    std::sort(grid.taps.begin(), grid.taps.end(), [](const Tap& a, const Tap& b) { return a.offset < b.offset; });
    const Reach& reach = layout.reach();
    for (const Tap& tap : grid.taps) {
      offsets.push_back(layout.at(tap.offset[0] - reach.low(0), tap.offset[1] - reach.low(1), tap.offset[2] - reach.low(2)));
      depths.push_back(grid.inside(0, tap.offset[0])), rows.push_back(grid.inside(1, tap.offset[1]));
    }
  }

  // From the first tap to the last of those that read inside the image for a row of places.
  Range read(int64_t z, int64_t y) const {
    return spanned(offsets.size(), [&](int64_t t) { return depths[t].has(z) && rows[t].has(y); });
  }
};

// Lanes of the groups from the first on, some of which may be beyond the last.
template <class T>
struct Block {
  int64_t first, count;
  Block(const Channels& c, int64_t block) : first(block * kLanes<T>), count(std::min<int64_t>(kLanes<T>, c.groups - first)) {}
};

template <class T>
int64_t blocks(const Channels& c) {
  return (c.groups + kLanes<T> - 1) / kLanes<T>;
}

// Outputs of one grid or, of a gradient by the input, of one for each phase of the stride.
template <class T>
class Convolution {
 public:
  Convolution(Pool& pool, const Channels& c, const std::vector<Grid>& grids, const T* bias)
      : c_(c),
        bias_(bias),
        all_(united(grids)),
        cut_(Reach(all_).cut(all_, c.batch, kLanes<T>, kMost, 1)),
        layout_(all_, kLanes<T>, cut_),
        shares_(cut_.slabs() * blocks<T>(c), std::max<int64_t>(1, cut_.slabs() * blocks<T>(c) / (kTasksAThread * pool.num_threads()))),
        past_(past_cache<T>(c.batch * c.groups * c.out * product(all_.out))) {
    for (const Grid& grid : grids) {
      phases_.push_back({grid, layout_});
      for (int64_t z = 0; z < grid.places[0]; ++z)
        for (int64_t y = 0; y < grid.places[1]; ++y) reads_.push_back(phases_.back().read(z, y));
    }
  }

  int64_t tasks() const { return shares_.parts; }

  void run(int64_t task, const T* x, const T* w, T* y) const {
    const int64_t output = (1 + all_.taps.size()) * kLanes<T>, a_channel = product(all_.out);
    const auto input = c_.groups % kLanes<T> ? zeros<T>(layout_.numbers()) : memory<T>(layout_.numbers());
    const auto weights = zeros<T>(c_.out * output),
               sums = memory<T>(cut_.most_images * product(cut_.size) * product(all_.out_step) * kLanes<T>);
    for (int64_t i = shares_.begin(task), last = -1; i < shares_.begin(task + 1); ++i) {
      const Block<T> block(c_, i / cut_.slabs());
      if (block.first != last) order(block, w, weights.get());
      last = block.first;
      const Slab slab = cut_.slab(i % cut_.slabs());
      layout_.fill(slab, x + block.first * product(all_.in), c_.groups, input.get(), block.count);
      for (int64_t o = 0; o < c_.out; ++o) {
        convolve(slab, input.get(), weights.get() + o * output, sums.get());
        T* first = y + (block.first * c_.out + o) * a_channel;
        write(all_, slab, sums.get(), kLanes<T>, block.count, first, c_.groups * c_.out * a_channel, c_.out * a_channel, past_);
      }
    }
  }

 private:
  // By output, of the block's groups: the bias, and what is by phase and tap.
  void order(const Block<T>& block, const T* w, T* to) const {
    for (int64_t o = 0; o < c_.out; ++o) {
      for (int64_t lane = 0; bias_ && lane < block.count; ++lane) to[lane] = bias_[(block.first + lane) * c_.out + o];
      to += kLanes<T>;
      for (const Taps<T>& phase : phases_)
        for (const Tap& tap : phase.grid.taps) {
          const T* from = w + block.first * c_.group_stride + o * c_.out_stride + tap.index;
          for (int64_t lane = 0; lane < block.count; ++lane) to[lane] = from[lane * c_.group_stride];
          to += kLanes<T>;
        }
    }
  }

  // All phases of a slab's places, where they stand among each other.
  void convolve(const Slab& slab, const T* input, const T* weights, T* to) const {
    const Ints sizes = extent(all_, slab);
    const Reach& reach = layout_.reach();
    const Range* reads = reads_.data();
    const T* first = weights;
    weights += kLanes<T>;
    for (const Taps<T>& phase : phases_) {
      const Grid& grid = phase.grid;
      const Parts runs(grid.places[2], kPlaces);
      for (int64_t i = 0; i < slab.images; ++i)
        for (int64_t z = 0; z < std::min(slab.size[0], grid.places[0] - slab.begin[0]); ++z)
          for (int64_t y = 0; y < std::min(slab.size[1], grid.places[1] - slab.begin[1]); ++y) {
            const Range read = reads[(slab.begin[0] + z) * grid.places[1] + slab.begin[1] + y];
            const T* from = input + i * layout_.image() + layout_.at(z * reach.step(0), y * reach.step(1), 0);
            T* out =
                to + (((i * sizes[0] + z * all_.out_step[0] + grid.first[0]) * sizes[1] + y * all_.out_step[1] + grid.first[1]) * sizes[2] +
                      grid.first[2]) *
                         kLanes<T>;
            for (int64_t r = 0; r < runs.parts; ++r)
              kRowsOf<T>[runs.size(r) - 1](first, from + layout_.at(0, 0, runs.begin(r)* reach.step(2)), layout_.at(0, 0, reach.step(2)),
                                           phase.offsets.data() + read.begin, read.end - read.begin, weights + read.begin* kLanes<T>,
                                           out + runs.begin(r)* all_.out_step[2]* kLanes<T>, all_.out_step[2]* kLanes<T>);
          }
      weights += phase.offsets.size() * kLanes<T>;
      reads += grid.places[0] * grid.places[1];
    }
  }

  const Channels c_;
  const T* bias_;
  const Grid all_;
  const Cut cut_;
  const ChannelsLast<T> layout_;
  const Parts shares_;
  const bool past_;
  std::vector<Taps<T>> phases_;
  // By phase, what each row of places reads.
  std::vector<Range> reads_;
};

template <class T>
void convolve(Pool& pool, const Channels& c, const std::vector<Grid>& grids, const T* x, const T* w, const T* bias, T* y) {
  const Convolution<T> convolution(pool, c, grids, bias);
  parallel(pool, convolution.tasks(), [&](int64_t task) { convolution.run(task, x, w, y); });
}

// How a gradient by the weight cuts the places, and in how many parts it sums up the slabs of a block.
template <class T>
Cut cut_of(const Channels& c, const Grid& grid) {
  return Reach(grid).cut(grid, c.batch, kLanes<T>, kMost, 1);
}
inline Parts parts_of(const Cut& cut, int64_t blocks) { return {cut.slabs(), std::max<int64_t>(1, cut.slabs() * blocks / kParts)}; }

// The gradient by the weight: g (N, G * O, *places) and x (N, G, *in) give w (G * O, *K).
template <class T>
class Correlation {
 public:
  Correlation(const Channels& c, const Grid& grid)
      : c_(c), cut_(cut_of<T>(c, grid)), layout_(grid, kLanes<T>, cut_), taps_(grid, layout_), parts_(parts_of(cut_, blocks<T>(c))) {
    const int64_t all = taps_.offsets.size();
    for (int64_t begin = 0; begin < all;) {
      // Whole rows of the kernel, as many as there are registers for, or parts of one.
      int64_t end = begin;
      while (end < all) {
        const int64_t next = row_end(end);
        if (next - begin > kTaps) break;
        end = next;
      }
      if (end == begin) end = std::min(begin + kTaps, row_end(begin));
      chunks_.push_back({begin, end});
      begin = end;
    }
  }

  int64_t parts() const { return parts_.parts; }
  // The sums of a task, by output and tap.
  int64_t sums() const { return c_.out * taps_.offsets.size() * kLanes<T>; }

  // The sums of tasks from the first on.
  void run(int64_t task, int64_t end, const T* g, const T* x, T* sums) const {
    const int64_t numbers = cut_.most_images * product(cut_.size) * kLanes<T>;
    const bool whole = c_.groups % kLanes<T> == 0;
    const auto input = whole ? memory<T>(layout_.numbers()) : zeros<T>(layout_.numbers()),
               slopes = whole ? memory<T>(numbers) : zeros<T>(numbers);
    for (; task < end; ++task, sums += this->sums()) {
      const Block<T> block(c_, task / parts_.parts);
      std::fill_n(sums, this->sums(), T{0});
      for (int64_t s = parts_.begin(task % parts_.parts); s < parts_.begin(task % parts_.parts + 1); ++s) {
        const Slab slab = cut_.slab(s);
        layout_.fill(slab, x + block.first * product(taps_.grid.in), c_.groups, input.get(), block.count);
        for (int64_t o = 0; o < c_.out; ++o) {
          order(slab, block, o, g, slopes.get());
          correlate(slab, slopes.get(), input.get(), sums + o * taps_.offsets.size() * kLanes<T>);
        }
      }
    }
  }

  // The weights of a block from the sums of its parts.
  void gather(int64_t at, T* sums, T* w) const {
    const Block<T> block(c_, at);
    for (int64_t part = 1; part < parts_.parts; ++part)
      for (int64_t i = 0; i < this->sums(); i += kLanes<T>) store(sums + i, load(sums + i) + load(sums + part * this->sums() + i));
    const int64_t taps = taps_.offsets.size();
    for (int64_t o = 0; o < c_.out; ++o)
      for (int64_t t = 0; t < taps; ++t, sums += kLanes<T>)
        for (int64_t lane = 0; lane < block.count; ++lane)
          w[((block.first + lane) * c_.out + o) * taps + taps_.grid.taps[t].index] = sums[lane];
  }

 private:
  int64_t row_end(int64_t t) const {
    const auto& taps = taps_.grid.taps;
    size_t end = t;
    while (end < taps.size() && taps[end].offset[0] == taps[t].offset[0] && taps[end].offset[1] == taps[t].offset[1]) ++end;
    return end;
  }

  // The slab's places along a dimension, counted from its first, that one of some taps reads inside the image for.
  Range read(const Slab& slab, const Range& chunk, int d) const {
    Range found{slab.size[d], 0};
    for (int64_t t = chunk.begin; t < chunk.end; ++t) {
      const Range& own = d ? taps_.rows[t] : taps_.depths[t];
      found.begin = std::min(found.begin, std::max<int64_t>(own.begin - slab.begin[d], 0));
      found.end = std::max(found.end, std::min(own.end - slab.begin[d], slab.size[d]));
    }
    return found;
  }

  // The slopes of a slab's places, of an output of each group.
  void order(const Slab& slab, const Block<T>& block, int64_t o, const T* g, T* to) const {
    const Ints& places = taps_.grid.places;
    const int64_t a_channel = product(places), plane = slab.size[1] * slab.size[2];
    for (int64_t part = 0; part < slab.images * slab.size[0]; ++part, to += plane * kLanes<T>) {
      const int64_t image = slab.image + part / slab.size[0], depth = slab.begin[0] + part % slab.size[0];
      const T* from = g + ((image * c_.groups + block.first) * c_.out + o) * a_channel;
      transpose(from + (depth * places[1] + slab.begin[1]) * places[2], a_channel * c_.out, block.count, plane, to, kLanes<T>);
    }
  }

  void correlate(const Slab& slab, const T* slopes, const T* input, T* sums) const {
    const Reach& reach = layout_.reach();
    const Ints g_row{slab.size[1] * slab.size[2] * kLanes<T>, slab.size[2] * kLanes<T>, 0};
    const Ints x_row{layout_.at(reach.step(0), 0, 0), layout_.at(0, reach.step(1), 0), 0};
    for (const Range& chunk : chunks_) {
      const Range depths = read(slab, chunk, 0), rows = read(slab, chunk, 1);
      if (depths.begin >= depths.end || rows.begin >= rows.end) continue;
      for (int64_t i = 0; i < slab.images; ++i)
        kDotsOf<T>[chunk.end - chunk.begin - 1]({depths.end - depths.begin, rows.end - rows.begin, 0}, slab.size[2],
                                                slopes + i* slab.size[0]* g_row[0] + depths.begin* g_row[0] + rows.begin* g_row[1], g_row,
                                                input + i* layout_.image() + depths.begin* x_row[0] + rows.begin* x_row[1], x_row,
                                                layout_.at(0, 0, reach.step(2)), taps_.offsets.data() + chunk.begin,
                                                sums + chunk.begin* kLanes<T>);
    }
  }

  const Channels c_;
  const Cut cut_;
  const ChannelsLast<T> layout_;
  const Taps<T> taps_;
  const Parts parts_;
  std::vector<Range> chunks_;
};

template <class T>
void correlate(Pool& pool, const Channels& c, const Grid& grid, const T* g, const T* x, T* w) {
  const Correlation<T> correlation(c, grid);
  const int64_t parts = correlation.parts(), size = correlation.sums(), all = blocks<T>(c) * parts;
  const auto sums = memory<T>(all * size);
  const Parts tasks(all, std::max<int64_t>(1, all / (kTasksAThread * pool.num_threads())));
  parallel(pool, tasks.parts,
           [&](int64_t i) { correlation.run(tasks.begin(i), tasks.begin(i + 1), g, x, sums.get() + tasks.begin(i) * size); });
  for (int64_t block = 0; block < blocks<T>(c); ++block) correlation.gather(block, sums.get() + block * parts * size, w);
}

}  // namespace jnn::depthwise
