// Convolutions of groups of one channel, straight from the input: each value serves few products, and no copy of it would pay.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "tasks.h"
#include "vector.h"

namespace jnn::depthwise {

constexpr int64_t kTasksAThread = 4;

// What each vector of places reads for each tap, known once for all channels.
template <class T>
class Plan {
 public:
  // One tap's share: the lanes that stand inside the input, and where the first lane, or the first of these, reads.
  struct Read {
    int32_t from;
    Mask mask;
  };

  // Lanes are as far apart in the input as steps are. Rows that are as long as the input's follow each other.
  Plan(const Grid& grid) : step_(grid.in_step[2]), taps_(grid.taps.size()) {
    const bool flat = grid.in_step == Ints{1, 1, 1} && grid.places[2] == grid.in[2];
    auto source = [&](const Ints& place, const Tap& tap, Ints* at) {
      bool inside = true;
      for (int d = 0; d < 3; ++d) {
        (*at)[d] = place[d] * grid.in_step[d] + tap.offset[d];
        inside = inside && (*at)[d] >= 0 && (*at)[d] < grid.in[d];
      }
      return inside;
    };
    build(grid, flat, source);
  }

  // Of the input's gradient: the lanes that a tap reaches read neighbours, where the stride leaves others out.
  Plan(const Geometry& geometry, const Grid& grid) : step_(0), taps_(grid.taps.size()) {
    auto source = [&](const Ints& place, const Tap& tap, Ints* at) {
      bool inside = true;
      for (int d = 0; d < 3; ++d) {
        const int64_t from = place[d] + tap.offset[d];
        (*at)[d] = from / geometry.stride[d];
        inside = inside && from >= 0 && from % geometry.stride[d] == 0 && (*at)[d] < grid.in[d];
      }
      return inside;
    };
    build(grid, false, source);
  }

  int64_t vectors() const { return own_.size(); }
  // The lanes of a vector that are places, and the first of these among all.
  Mask own(int64_t vector) const { return own_[vector]; }
  int64_t place(int64_t vector) const { return places_[vector]; }

  // Calls use(tap, what it reads) for all taps, those too that do not reach into the image: a branch for each would cost more.
  template <class Use>
  void read(const T* image, int64_t vector, const Use& use) const {
    const Read* read = reads_.data() + vector * taps_;
    if (step_ == 1) {
      for (int64_t t = 0; t < taps_; ++t) use(t, load_masked(image + read[t].from, read[t].mask, 1));
    } else if (step_) {
      for (int64_t t = 0; t < taps_; ++t) use(t, load_masked(image + read[t].from, read[t].mask, step_));
    } else {
      for (int64_t t = 0; t < taps_; ++t) use(t, load_spread(image + read[t].from, read[t].mask));
    }
  }

 private:
  template <class Source>
  void build(const Grid& grid, bool flat, const Source& source) {
    const int64_t rows = grid.places[0] * grid.places[1], columns = grid.places[2], length = flat ? rows * columns : columns;
    for (int64_t row = 0; row < (flat ? 1 : rows); ++row)
      for (int64_t x = 0; x < length; x += kLanes<T>) {
        const int64_t first = row * columns + x, count = std::min<int64_t>(kLanes<T>, length - x);
        own_.push_back(between(0, count)), places_.push_back(first);
        for (size_t t = 0; t < grid.taps.size(); ++t) {
          Read read{0, 0};
          for (int64_t lane = 0; lane < count; ++lane) {
            const int64_t place = first + lane;
            Ints at;
            if (!source({place / columns / grid.places[1], place / columns % grid.places[1], place % columns}, grid.taps[t], &at)) continue;
            if (!read.mask) read.from = (at[0] * grid.in[1] + at[1]) * grid.in[2] + at[2] - lane * step_;
            read.mask |= 1u << lane;
          }
          reads_.push_back(read);
        }
      }
  }

  int64_t step_, taps_;
  std::vector<Mask> own_;
  std::vector<int64_t> places_;
  std::vector<Read> reads_;
};

// x (N, G, *in), w (G, O, *K) with the strides of `c`, and y (N, G * O, *places).
template <class T>
void convolve(ffi::ThreadPool& pool, const Channels& c, const Grid& grid, const Plan<T>& plan, const T* x, const T* w, T* y) {
  const int64_t taps = grid.taps.size(), wanted = kTasksAThread * pool.num_threads();
  const Parts groups(c.groups, std::max<int64_t>(1, c.groups / wanted)),
      images(c.batch, std::clamp(c.batch * groups.parts / wanted, int64_t{1}, c.batch));
  const bool past = past_cache<T>(c.batch * c.groups * c.out * product(grid.places));
  const Mask whole = between(0, kLanes<T>);
  parallel(pool, images.parts * groups.parts, [&](int64_t task) {
    const int64_t part = task % groups.parts, share = task / groups.parts;
    const auto factors = memory<T>(taps);
    for (int64_t channel = groups.begin(part) * c.out; channel < groups.begin(part + 1) * c.out; ++channel) {
      const int64_t group = channel / c.out;
      for (int64_t t = 0; t < taps; ++t) factors[t] = w[group * c.group_stride + channel % c.out * c.out_stride + grid.taps[t].index];
      for (int64_t n = images.begin(share); n < images.begin(share + 1); ++n) {
        const T* image = x + (n * c.groups + group) * product(grid.in);
        T* out = y + (n * c.groups * c.out + channel) * product(grid.places);
        for (int64_t v = 0; v < plan.vectors(); ++v) {
          Vector<T> sum{};
          plan.read(image, v, [&](int64_t tap, Vector<T> value) { sum += broadcast(factors[tap]) * value; });
          if (past && plan.own(v) == whole) stream(out + plan.place(v), sum);
          else store_masked(out + plan.place(v), sum, plan.own(v), 1);
        }
      }
    }
  });
}

// The gradient by the weight: g (N, G * O, *places) and x (N, G, *in) give w (G * O, *K).
template <class T>
void correlate(ffi::ThreadPool& pool, const Channels& c, const Grid& grid, const T* g, const T* x, T* w) {
  const Plan<T> plan(grid);
  const int64_t taps = grid.taps.size(), all = c.groups * c.out;
  const Parts parts(all, std::max<int64_t>(1, all / (kTasksAThread * pool.num_threads())));
  parallel(pool, parts.parts, [&](int64_t task) {
    const auto sums = memory<Vector<T>>(taps);
    for (int64_t o = parts.begin(task); o < parts.begin(task + 1); ++o) {
      std::fill_n(sums.get(), taps, Vector<T>{});
      for (int64_t n = 0; n < c.batch; ++n) {
        const T* image = x + (n * c.groups + o / c.out) * product(grid.in);
        const T* slopes = g + (n * all + o) * product(grid.places);
        for (int64_t v = 0; v < plan.vectors(); ++v) {
          const Vector<T> slope = load_masked(slopes + plan.place(v), plan.own(v), 1);
          plan.read(image, v, [&](int64_t tap, Vector<T> value) { sums[tap] += slope * value; });
        }
      }
      for (int64_t t = 0; t < taps; ++t) w[o * taps + grid.taps[t].index] = total<T>(sums[t]);
    }
  });
}

}  // namespace jnn::depthwise
