// Gradients by the input of a convolution as products with the weight, whose columns are added where they belong: for few places, of which
// other forms would read weights in another order, and for few outputs, whose columns are more rows of tiles. In steps of one every
// convolution is such a gradient.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "geometry.h"
#include "matrices.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "tasks.h"
#include "vector.h"

namespace jnn::columns {

// So many places are taken side by side where images are that small, and so many numbers of columns are held at once, about.
constexpr int64_t kPlaces = 256, kMost = 1 << 16;
// What it costs, in cycles of a product of vectors, to put a weight in order and to transpose a number of a column.
constexpr double kOrdered = 1.7, kTransposed = 1.4;

inline int64_t images_at_once(const Channels& c, const Grid& grid) {
  return std::clamp(kPlaces / product(grid.places), int64_t{1}, c.batch);
}

// What the products of some images cost, where lanes are their places, of weights in order, or `across` them columns, of weights as they
// lie: no end where these stand in other runs or the tiles' offsets are too large.
template <class T>
double cost(const Channels& c, const Grid& grid, bool across) {
  const int64_t places = images_at_once(c, grid) * product(grid.places), columns = c.out * c.kernel();
  const bool together = c.out == 1 || c.out_stride == c.kernel();
  if ((across && !together) || c.in * (across ? c.in_stride : whole<T>(places)) > std::numeric_limits<int32_t>::max())
    return std::numeric_limits<double>::infinity();
  const double tiles = double(whole<T>(across ? columns : places)) / kTileColumns<T>;
  return tiles * c.in * tile_cycles(across ? places : columns) + columns * (across ? kTransposed * places : kOrdered * c.in);
}

template <class T>
bool across(const Channels& c, const Grid& grid) {
  return cost<T>(c, grid, true) < cost<T>(c, grid, false);
}

template <class T>
class Convolution {
 public:
  // Places and taps are those of the convolution whose gradient this is: `grid` reads what is written here.
  Convolution(const Channels& c, const Grid& grid, const T* bias)
      : c_(c),
        grid_(grid),
        bias_(bias),
        images_(images_at_once(c, grid)),
        blocks_(c.batch, images_),
        run_(c.out_stride == c.kernel() ? c.out * c.kernel() : c.kernel()),
        across_(across<T>(c, grid)),
        packed_(!across_ || images_ > 1),
        pitch_(whole<T>(images_ * product(grid.places))) {
    for (int64_t channel = 0; channel < c.in; ++channel) offsets_.push_back(channel * (across_ ? c.in_stride : pitch_));
  }

  void run(Pool& pool, const T* from, const T* w, T* to) const {
    const int64_t units = blocks_.parts * c_.groups, wanted = kTasksAThread * pool.num_threads(), size = c_.kernel() * pitch_;
    // Of outputs too few for all threads, places are shared out.
    const Parts tiles(pitch_ / kLanes<T>, kTileVectors);
    const bool few = !across_ && c_.out * units < wanted && c_.out < tiles.parts;
    const int64_t least = across_ ? std::min(c_.out, kTileColumns<T> / c_.kernel() + 1) : 1;
    const Parts outputs(c_.out, few ? c_.out : std::clamp(std::min(kMost / size, c_.out * units / wanted), least, c_.out));
    // What one task alone reads it puts in order itself.
    const Memory<T> inputs = packed_ && (few || outputs.parts > 1) ? packed(pool, units, from) : nullptr;
    const Memory<T> factors = !across_ && (few || blocks_.parts > 1) ? ordered(pool, outputs, w) : nullptr;
    if (few) return by_places(pool, units, Parts(tiles.parts, (tiles.parts * units + wanted - 1) / wanted), inputs, factors, to);
    parallel(pool, units * outputs.parts, [&](int64_t task) {
      const int64_t unit = task / outputs.parts, group = unit % c_.groups;
      const int64_t first = outputs.begin(task % outputs.parts), count = outputs.size(task % outputs.parts);
      const T* weights = w + group * c_.group_stride;
      const auto input = memory<T>(packed_ && !inputs ? this->input() : 0), own = memory<T>(across_ || factors ? 0 : count * depth());
      if (packed_ && !inputs) pack(unit, {0, c_.in}, from, input.get());
      if (!across_ && !factors) order(weights, first, count, own.get());
      const T* in = !packed_ ? image_of(unit, from, 0) : inputs ? inputs.get() + unit * this->input() : input.get();
      const auto columns = memory<T>(count * size);
      across_ ? multiply_across(in, weights, first, count, columns.get())
              : multiply(in, factors ? factors_of(factors, group, first) : own.get(), count, {0, pitch_}, columns.get());
      for (int64_t i = 0; i < count; ++i) add(unit, first + i, columns.get() + i * size, to);
    });
  }

 private:
  // Of a block of images and a group: (channels, pitch), the places of images one after another. What tiles read behind them is not used.
  int64_t input() const { return c_.in * pitch_ + kTileColumns<T>; }
  int64_t all_places() const { return images_ * product(grid_.places); }
  int64_t first_image(int64_t unit) const { return blocks_.begin(unit / c_.groups); }
  int64_t images(int64_t unit) const { return blocks_.size(unit / c_.groups); }
  // The i-th image of a unit.
  const T* image_of(int64_t unit, const T* from, int64_t i) const {
    return from + ((first_image(unit) + i) * c_.groups + unit % c_.groups) * c_.in * product(grid_.places);
  }

  // Of tiles of places, in `shares` for each unit, the columns of all outputs; then what is added up.
  void by_places(Pool& pool, int64_t units, const Parts& shares, const Memory<T>& inputs, const Memory<T>& factors, T* to) const {
    const int64_t size = c_.kernel() * pitch_;
    const Parts tiles(pitch_ / kLanes<T>, kTileVectors);
    const auto columns = memory<T>(units * c_.out * size);
    parallel(pool, units * shares.parts, [&](int64_t task) {
      const int64_t unit = task / shares.parts, share = task % shares.parts;
      const Range places{tiles.begin(shares.begin(share)) * kLanes<T>, tiles.begin(shares.begin(share + 1)) * kLanes<T>};
      const T* input = inputs.get() + unit * this->input();
      multiply(input, factors_of(factors, unit % c_.groups, 0), c_.out, places, columns.get() + unit * c_.out * size);
    });
    parallel(pool, units * c_.out, [&](int64_t i) { add(i / c_.out, i % c_.out, columns.get() + i * size, to); });
  }

  // The inputs of all units.
  Memory<T> packed(Pool& pool, int64_t units, const T* from) const {
    auto to = memory<T>(units * input());
    by_task(pool, units * c_.in, pitch_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin, last; i < end; i = last) {
        const int64_t unit = i / c_.in;
        last = std::min(end, (unit + 1) * c_.in);
        pack(unit, {i - unit * c_.in, last - unit * c_.in}, from, to.get() + unit * input());
      }
    });
    return to;
  }

  void pack(int64_t unit, const Range& channels, const T* from, T* to) const {
    const int64_t places = product(grid_.places);
    for (int64_t i = 0; i < images(unit); ++i) {
      const T* own = image_of(unit, from, i);
      for (int64_t channel = channels.begin; channel < channels.end; ++channel)
        copy_short(own + channel * places, places, to + channel * pitch_ + i * places);
    }
  }

  // What the columns of an output are products with.
  int64_t depth() const { return c_.kernel() * c_.in; }

  // The weights of all groups, in parts of outputs, and where those of an output's begin that is a part's first.
  Memory<T> ordered(Pool& pool, const Parts& outputs, const T* w) const {
    auto to = memory<T>(c_.groups * c_.out * depth());
    parallel(pool, c_.groups * outputs.parts, [&](int64_t task) {
      const int64_t group = task / outputs.parts, first = outputs.begin(task % outputs.parts), count = outputs.size(task % outputs.parts);
      order(w + group * c_.group_stride, first, count, to.get() + (group * c_.out + first) * depth());
    });
    return to;
  }
  const T* factors_of(const Memory<T>& factors, int64_t group, int64_t output) const {
    return factors.get() + (group * c_.out + output) * depth();
  }

  // The weights of some outputs, by tile, of the rows of each by input channel. What is written behind a run is overwritten.
  void order(const T* w, int64_t first, int64_t outputs, T* to) const {
    const Parts rows(outputs * c_.kernel(), kMostRows);
    for (int64_t r = 0; r < rows.parts; ++r) {
      const int64_t begin = first * c_.kernel() + rows.begin(r), end = begin + rows.size(r);
      const T *from = w, *behind = to + c_.in * rows.size(r);
      for (int64_t channel = 0; channel < c_.in; ++channel, from += c_.in_stride)
        for (int64_t row = begin, run; row < end; row += run, to += run) {
          run = std::min({(row / run_ + 1) * run_ - row, end - row, int64_t{kLanes<T>}});
          store_some(to, load_some(from + row / run_ * c_.out_stride + row % run_, run), behind - to < kLanes<T> ? run : kLanes<T>);
        }
    }
  }

  // The columns of some outputs, (outputs * kernel, pitch), in a range of places.
  void multiply(const T* input, const T* factors, int64_t outputs, const Range& places, T* columns) const {
    const Parts rows(outputs * c_.kernel(), kMostRows);
    for (int64_t r = 0; r < rows.parts; ++r) {
      const int64_t begin = rows.begin(r), count = rows.size(r);
      for (int64_t j = places.begin; j < places.end; j += kTileColumns<T>) {
        const auto& tiles = places.end - j > kLanes<T> ? kTiles<T> : kNarrowTiles<T>;
        T* to = columns + begin * pitch_ + j;
        tiles[count - 1](c_.in, factors + begin * c_.in, count, input + j, offsets_.data(), to, pitch_, false, nullptr);
      }
    }
  }

  // The same, of all places, by products (places, columns), which are transposed.
  void multiply_across(const T* input, const T* w, int64_t first, int64_t outputs, T* columns) const {
    const int64_t size = outputs * c_.kernel(), width = whole<T>(size), begin = first * c_.kernel(), step = packed_ ? pitch_ : all_places();
    // Of as many channels the vectors of weights are no longer than all of them; others are copied.
    const int64_t behind = c_.in * c_.in_stride - begin - width;
    const int64_t inside = behind < 0 ? 0 : std::min(c_.in, behind / c_.in_stride + 1), rest = c_.in - inside;
    const auto products = memory<T>(all_places() * width), last = memory<T>(rest * width);
    in_rows(w + inside * c_.in_stride + begin, c_.in_stride, rest, size, width, last.get());
    std::vector<int32_t> offsets;
    for (int64_t channel = 0; channel < rest; ++channel) offsets.push_back(channel * width);
    const Parts rows(all_places(), kMostRows);
    for (int64_t r = 0; r < rows.parts; ++r)
      for (int64_t j = 0; j < width; j += kTileColumns<T>) {
        const auto& tile = (width - j > kLanes<T> ? kTiles<T> : kNarrowTiles<T>)[rows.size(r) - 1];
        const T* left = input + rows.begin(r);
        T* to = products.get() + rows.begin(r) * width + j;
        tile(inside, left, step, w + begin + j, offsets_.data(), to, width, false, nullptr);
        tile(rest, left + inside * step, step, last.get() + j, offsets.data(), to, width, true, nullptr);
      }
    for (int64_t i = 0; i < all_places(); i += kLanes<T>)
      in_columns(products.get() + i * width, width, std::min<int64_t>(kLanes<T>, all_places() - i), size, columns + i, pitch_);
  }

  // An output of the unit's images from its columns, (kernel, pitch).
  void add(int64_t unit, int64_t output, const T* columns, T* to) const {
    const int64_t places = product(grid_.places), size = product(grid_.in);
    for (int64_t i = 0; i < images(unit); ++i, columns += places) {
      const int64_t channel = unit % c_.groups * c_.out + output;
      T* image = to + ((first_image(unit) + i) * c_.groups * c_.out + channel) * size;
      std::fill_n(image, size, bias_ ? bias_[channel] : T{0});
      for (const Tap& tap : grid_.taps) add(tap, columns + tap.index * pitch_, image);
    }
  }

  void add(const Tap& tap, const T* from, T* to) const {
    const auto [depths, rows, row] =
        std::array{grid_.inside(0, tap.offset[0]), grid_.inside(1, tap.offset[1]), grid_.inside(2, tap.offset[2])};
    const int64_t step = grid_.in_step[2];
    for (int64_t z = depths.begin; z < depths.end; ++z)
      for (int64_t y = rows.begin; y < rows.end; ++y) {
        const int64_t depth = z * grid_.in_step[0] + tap.offset[0], line = depth * grid_.in[1] + y * grid_.in_step[1] + tap.offset[1];
        T* at = to + line * grid_.in[2] + tap.offset[2];
        const T* values = from + (z * grid_.places[1] + y) * grid_.places[2];
        if (step == 1)
          for (int64_t x = row.begin; x < row.end; ++x) at[x] += values[x];
        else
          for (int64_t x = row.begin; x < row.end; ++x) at[x * step] += values[x];
      }
  }

  const Channels& c_;
  const Grid& grid_;
  const T* bias_;
  const int64_t images_;
  const Parts blocks_;
  // So many columns of an input channel's weights stand side by side.
  const int64_t run_;
  // Inputs that are read one by one, of one image, are so where they are.
  const bool across_, packed_;
  const int64_t pitch_;
  std::vector<int32_t> offsets_;
};

template <class T>
void convolve(Pool& pool, const Channels& c, const Grid& grid, const T* from, const T* w, const T* bias, T* to) {
  Convolution<T>(c, grid, bias).run(pool, from, w, to);
}

}  // namespace jnn::columns
