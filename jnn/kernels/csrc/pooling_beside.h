// Maxima over windows of as many small planes as a vector has lanes, side by side.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "greatest.h"
#include "memory.h"
#include "transpose.h"
#include "vector.h"

namespace jnn {

// An axis of `in` places, and those that each window has: `count` of them, `step` apart.
struct Runs {
  struct Run {
    int64_t first, count, step;
  };
  int64_t in = 1;
  std::vector<Run> windows;

  int64_t out() const { return windows.size(); }
};

template <class T, bool placed>
class Beside {
 public:
  // Depths, rows and columns.
  explicit Beside(std::array<Runs, 3> axes)
      : axes_(std::move(axes)),
        rows_(axes_[0].in * axes_[1].in),
        in_(rows_ * axes_[2].in),
        out_(axes_[0].out() * axes_[1].out() * axes_[2].out()),
        x_(memory<T>(in_ * kLanes<T>)),
        values_(memory<T>(out_ * kLanes<T>)),
        places_(memory<T>(placed ? 2 * out_ * kLanes<T> : 0)),
        values_along_(memory<T>(rows_ * axes_[2].out() * kLanes<T>)),
        places_along_(memory<Integer>(placed ? rows_ * axes_[2].out() * kLanes<T> : 0)) {}

  void run(const T* x, int64_t planes, T* values, int32_t* places) {
    transpose(x, in_, planes, in_, x_.get(), kLanes<T>);
    if constexpr (placed) find<Greatest<T, true>>();
    else any_nan(x, planes * in_) ? find<Greatest<T, false>>() : find<GreatestOrdered<T>>();
    transpose(values_.get(), kLanes<T>, out_, planes, values, out_);
    if constexpr (placed) {
      T* const numbers = places_.get() + out_ * kLanes<T>;
      transpose(places_.get(), kLanes<T>, out_, planes, numbers, out_);
      for (int64_t i = 0; i < planes * out_; ++i) places[i] = static_cast<int32_t>(numbers[i]);
    }
  }

 private:
  using Run = Runs::Run;
  using Integer = std::make_signed_t<Bits<T>>;

  template <class Found>
  void find() {
    along_rows<Found>();
    T *values = values_.get(), *places = places_.get();
    for (const Run& depth : axes_[0].windows)
      for (const Run& row : axes_[1].windows) {
        across_rows<Found>(depth, row, values, places);
        values += axes_[2].out() * kLanes<T>, places += placed ? axes_[2].out() * kLanes<T> : 0;
      }
  }

  // Stores may change members for all that a compiler knows, so that those that loops read are copied.
  template <class Found>
  void along_rows() {
    const Run* const runs = axes_[2].windows.data();
    const int64_t in = axes_[2].in, out = axes_[2].out(), rows = rows_;
    const T* const x = x_.get();
    T* values = values_along_.get();
    Integer* places = places_along_.get();
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column < out; ++column, values += kLanes<T>) {
        const Run run = runs[column];
        int64_t place = row * in + run.first;
        const auto there = [&] { return Integers<T>{} + static_cast<Integer>(place); };
        Found found{load(x + place * kLanes<T>), there()};
        for (int64_t i = 1; i < run.count; ++i) {
          place += run.step;
          found.see(load(x + place * kLanes<T>), there());
        }
        found.settle();
        store(values, found.value);
        if constexpr (placed) store(places, found.place), places += kLanes<T>;
      }
  }

  template <class Found>
  void across_rows(const Run depth, const Run row, T* values, T* places) const {
    const int64_t out = axes_[2].out(), rows = axes_[1].in;
    const T* const along = values_along_.get();
    const Integer* const there = places_along_.get();
    for (int64_t column = 0; column < out; ++column, values += kLanes<T>) {
      Found found;
      for (int64_t d = 0; d < depth.count; ++d)
        for (int64_t r = 0; r < row.count; ++r) {
          const int64_t at = (((depth.first + d * depth.step) * rows + row.first + r * row.step) * out + column) * kLanes<T>;
          const Found other{load(along + at), placed ? load(there + at) : Integers<T>{}};
          if (d + r == 0) found = other;
          else found.see(other);
        }
      found.settle();
      store(values, found.value);
      // As numbers of T, which are transposed alike.
      if constexpr (placed) store(places, __builtin_convertvector(found.place, Vector<T>)), places += kLanes<T>;
    }
  }

  const std::array<Runs, 3> axes_;
  const int64_t rows_, in_, out_;
  const Memory<T> x_, values_, places_, values_along_;
  const Memory<Integer> places_along_;
};

}  // namespace jnn
