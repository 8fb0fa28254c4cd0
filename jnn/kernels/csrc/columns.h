// Gradients by the input of a convolution as products with the weight as it lies, whose columns are added where they belong: for few
// places, of which other forms would read weights in another order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "vector.h"

namespace jnn::columns {

// So many places are taken side by side where images are that small, and so many numbers of columns are held at once, about.
constexpr int64_t kPlaces = 256, kMost = 1 << 16;

inline int64_t images_at_once(const Channels& c, const Grid& grid) {
  return std::clamp(kPlaces / product(grid.places), int64_t{1}, c.batch);
}

template <class T>
class Convolution {
 public:
  // Places and taps are those of the convolution whose gradient this is: `grid` reads what is written here.
  Convolution(const Channels& c, const Grid& grid, const T* bias)
      : c_(c), grid_(grid), bias_(bias), images_(images_at_once(c, grid)), blocks_(c.batch, images_) {
    pitch_ = whole<T>(images_ * product(grid.places));
    for (int64_t channel = 0; channel < c.in; ++channel) offsets_.push_back(channel * pitch_);
  }

  void run(Pool& pool, const T* from, const T* w, T* to) const {
    const int64_t units = blocks_.parts * c_.groups, wanted = kTasksAThread * pool.num_threads();
    const auto inputs = memory<T>(units * input());
    parallel(pool, units, [&](int64_t unit) { pack(unit, from, inputs.get() + unit * input()); });
    const Parts outputs(c_.out, std::clamp(std::min(kMost / (c_.kernel() * pitch_), c_.out * units / wanted), int64_t{1}, c_.out));
    parallel(pool, units * outputs.parts, [&](int64_t task) {
      const int64_t unit = task / outputs.parts, part = task % outputs.parts, first = outputs.begin(part), count = outputs.size(part);
      const auto columns = memory<T>(count * c_.kernel() * pitch_);
      multiply(inputs.get() + unit * input(), w + unit % c_.groups * c_.group_stride + first * c_.kernel(), count, columns.get());
      for (int64_t i = 0; i < count; ++i) add(unit, first + i, columns.get() + i * c_.kernel() * pitch_, to);
    });
  }

 private:
  // Of a block of images and a group: (channels, pitch), the places of images one after another. A tile may read behind it.
  int64_t input() const { return c_.in * pitch_ + kTileColumns<T>; }
  int64_t first_image(int64_t unit) const { return blocks_.begin(unit / c_.groups); }
  int64_t images(int64_t unit) const { return blocks_.size(unit / c_.groups); }

  void pack(int64_t unit, const T* from, T* to) const {
    const int64_t places = product(grid_.places);
    std::fill_n(to, input(), T{0});
    for (int64_t i = 0; i < images(unit); ++i) {
      const T* image = from + ((first_image(unit) + i) * c_.groups + unit % c_.groups) * c_.in * places;
      for (int64_t channel = 0; channel < c_.in; ++channel)
        std::copy_n(image + channel * places, places, to + channel * pitch_ + i * places);
    }
  }

  // The columns of some outputs, (outputs * kernel, pitch).
  void multiply(const T* input, const T* w, int64_t outputs, T* columns) const {
    const Parts rows(outputs * c_.kernel(), kMostRows);
    const auto factors = memory<T>(c_.in * kMostRows);
    for (int64_t r = 0; r < rows.parts; ++r) {
      const int64_t begin = rows.begin(r), count = rows.size(r);
      for (int64_t channel = 0; channel < c_.in; ++channel)
        std::copy_n(w + channel * c_.in_stride + begin, count, factors.get() + channel * count);
      for (int64_t j = 0; j < pitch_; j += kTileColumns<T>) {
        const auto& tiles = pitch_ - j > kLanes<T> ? kTiles<T> : kNarrowTiles<T>;
        tiles[count - 1](c_.in, factors.get(), count, input + j, offsets_.data(), columns + begin * pitch_ + j, pitch_, false, nullptr);
      }
    }
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
  int64_t pitch_;
  std::vector<int32_t> offsets_;
};

template <class T>
void convolve(Pool& pool, const Channels& c, const Grid& grid, const T* from, const T* w, const T* bias, T* to) {
  Convolution<T>(c, grid, bias).run(pool, from, w, to);
}

}  // namespace jnn::columns
