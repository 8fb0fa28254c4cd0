// Sums over taps that stand above one another: what is loaded of a row is multiplied for several rows of places.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "geometry.h"
#include "products.h"
#include "vector.h"

namespace jnn {

// Taps of a stack, and rows of places that are summed up at a time.
constexpr int kStack = 7, kStackRows = kRegisters == 32 ? 8 : 6;
// Of so few rows of taps tiles of neighbours take 0.85 to 0.97 of the time; of more 1.25 to 2.
constexpr int64_t kFewTapRows = 3;

// Whether slabs are summed up by stacks.
inline bool in_stacks(const Channels& c, const Grid& grid) {
  return c.out == 1 && grid.in_step == Ints{1, 1, 1} && grid.tap_rows() > kFewTapRows;
}

// c[r][lanes] = (add ? c[r] : start) + the sum over stacks s and k < taps of w[s * taps + k] * x[offsets[s] + (r + k) * pitch + lanes], for
// `rows` rows of c, `stride` apart.
template <class T, int rows, int taps>
void stack(int64_t stacks, const T* w, const T* x, int64_t pitch, const int32_t* offsets, T* c, int64_t stride, bool add, T start) {
  Vector<T> sums[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sums[r] = add ? load(c + r * stride) : broadcast(start);
  for (int64_t s = 0; s < stacks; ++s, w += taps) {
    Vector<T> left[taps];
#pragma GCC unroll 8
    for (int k = 0; k < taps; ++k) left[k] = broadcast(w[k]);
    const T* from = x + offsets[s];
#pragma GCC unroll 16
    for (int i = 0; i < rows + taps - 1; ++i) {
      const Vector<T> right = load(from + i * pitch);
#pragma GCC unroll 8
      for (int k = 0; k < taps; ++k)
        if (k <= i && i - k < rows) sums[i - k] += left[k] * right;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) store(c + r * stride, sums[r]);
}

template <class T>
using StackOf = void (*)(int64_t, const T*, const T*, int64_t, const int32_t*, T*, int64_t, bool, T);
template <class T, size_t... i>
constexpr std::array<StackOf<T>, sizeof...(i)> stacks_of(std::index_sequence<i...>) {
  return {stack<T, i / kStack + 1, i % kStack + 1>...};
}
// That of (rows - 1) * kStack + taps - 1.
template <class T>
inline constexpr auto kStacks = stacks_of<T>(std::make_index_sequence<kStackRows * kStack>());

// The taps of a channel, whose shifts are by depths, rows and columns, in stacks of all rows that a depth and a column have, cut where
// those are many.
class Stacks {
 public:
  // `shifts` are of as many rows in each, a row and a depth so many numbers apart.
  Stacks(const std::vector<Ints>& shifts, int64_t rows, int64_t row, int64_t depth) : cut_(rows, kStack), row_(row) {
    std::vector<Ints> columns;
    for (const Ints& shift : shifts)
      if (shift[1] == 0) columns.push_back(shift);
    std::sort(columns.begin(), columns.end());
    for (const Ints& column : columns) {
      depths_.push_back(column[0]);
      offsets_.push_back(column[0] * depth + column[2]);
    }
    for (const Ints& shift : shifts) {
      const int64_t column = std::lower_bound(columns.begin(), columns.end(), Ints{shift[0], 0, shift[2]}) - columns.begin();
      int64_t part = 0;
      while (cut_.begin(part + 1) <= shift[1]) ++part;
      order_.push_back(columns.size() * cut_.begin(part) + column * cut_.size(part) + shift[1] - cut_.begin(part));
    }
  }

  // Those of taps, in the order of stacks.
  template <class T>
  void order(const T* weights, int64_t channels, T* to) const {
    for (int64_t c = 0; c < channels; ++c)
      for (size_t tap = 0; tap < order_.size(); ++tap) to[c * order_.size() + order_[tap]] = weights[c * order_.size() + tap];
  }

  // The sums of rows of a depth, `stride` apart, whose taps of the depths outside `inside` meet nothing; x has `channels`, `channel` apart.
  template <class T>
  void multiply(const T* weights, const T* x, int64_t channels, int64_t channel, Range inside, int64_t rows, int64_t columns, T start,
                T* to, int64_t stride) const {
    const int64_t first = std::lower_bound(depths_.begin(), depths_.end(), inside.begin) - depths_.begin();
    const int64_t count = std::lower_bound(depths_.begin(), depths_.end(), inside.end) - depths_.begin() - first;
    const Parts blocks(rows, kStackRows);
    for (int64_t b = 0; b < blocks.parts; ++b)
      for (int64_t at = 0; at < columns; at += kLanes<T>)
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t part = 0; part < cut_.parts; ++part) {
            const int64_t taps = cut_.size(part), all = depths_.size();
            const T* w = weights + c * all * cut_.count + all * cut_.begin(part) + first * taps;
            const T* from = x + c * channel + (blocks.begin(b) + cut_.begin(part)) * row_ + at;
            kStacks<T>[(blocks.size(b) - 1) * kStack + taps - 1](count, w, from, row_, offsets_.data() + first,
                                                                 to + blocks.begin(b)* stride + at, stride, c + part > 0, start);
          }
  }

 private:
  const Parts cut_;
  const int64_t row_;
  std::vector<int64_t> depths_, order_;
  std::vector<int32_t> offsets_;
};

}  // namespace jnn
