// Sums of rows at given indices, each times a number, and their gradients by the rows and by the numbers: rows as they stand, and planes of
// which each channel has its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "lanes.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"
#include "tasks.h"
#include "transpose.h"
#include "vector.h"

namespace jnn::sampling {

// Planes are read with so many channels side by side, unless there are fewer or few places.
constexpr int64_t kWide = 16;
// Of planes as they stand, so many are read at an index at most.
constexpr int64_t kPlanes = 8;

// Place p has the entries first(p) + i * apart for i < count(p).
struct Entries {
  const int32_t* bounds;
  int64_t each, step, apart;
  int64_t first(int64_t p) const { return bounds ? bounds[p] : p * step; }
  int64_t end(int64_t p) const { return bounds ? bounds[p + 1] : p * step + each * apart; }
};

// Rows begin `pitch` apart.
template <class T>
struct Rows {
  T* data;
  int64_t count, pitch;
  T* at(int64_t i) const { return data + i * pitch; }
  Rows from(int64_t i) const { return {at(i), count - i, pitch}; }
  Rows from(int64_t i, int64_t most) const { return {at(i), std::min(most, count - i), pitch}; }
  bool has(int32_t i) const { return static_cast<uint32_t>(i) < static_cast<uint64_t>(count); }
};

// Entries whose index is `nothing` are left out; others without a row stand for a row of the value for what is missing.
template <class T>
struct Terms {
  Entries entries;
  const int32_t* index;
  const T* weight;
  int32_t nothing;
  // Whether each place has the one entry of its number, without a weight.
  bool single() const { return !weight && !entries.bounds && entries.each == 1; }
  // Whether the sum of each place is a row.
  bool copies() const { return single() && nothing < 0; }
  T weight_of(int64_t entry) const { return weight ? weight[entry] : T{1}; }
};

// One place's sum over its entries of weight * x[index], in the columns from `column` on that n vectors hold, of which `lanes` count;
// `past` the cache or not.
template <int n, class T, class Lanes>
inline void gather_columns(const Terms<T>& terms, int64_t p, Rows<const T> x, const T* missing, int64_t column, T* to, bool past,
                           const Lanes& lanes) {
  Vector<T> sums[n]{};
  for (int64_t e = terms.entries.first(p), end = terms.entries.end(p); e < end; e += terms.entries.apart) {
    const int32_t i = terms.index[e];
    if (i == terms.nothing) continue;
    const T* from = x.has(i) ? x.at(i) + column : missing;
    const T weight = terms.weight_of(e);
#pragma GCC unroll 4
    for (int j = 0; j < n; ++j) sums[j] += weight * lanes.load(from + j * kLanes<T>);
  }
#pragma GCC unroll 4
  for (int j = 0; j < n; ++j) lanes.store(to + column + j * kLanes<T>, sums[j], past);
}

// y[p] = x[index], for places from begin to end.
template <class T>
void copy(const Terms<T>& terms, int64_t width, int64_t begin, int64_t end, Rows<const T> x, const T* missing, Rows<T> y, bool past) {
  for (int64_t p = begin; p < end; ++p) {
    const int32_t i = terms.index[p];
    const T* from = x.has(i) ? x.at(i) : missing;
    T* to = y.at(p);
    vectors<T>(width, [&](int64_t at, auto, auto lanes) { lanes.store(to + at, lanes.load(from + at), past); });
  }
}

// y[p] = sum over p's entries of weight * x[index], for places from begin to end.
template <class T>
void gather(const Terms<T>& terms, int64_t width, int64_t begin, int64_t end, Rows<const T> x, const T* missing, Rows<T> y,
            bool past = false) {
  if (terms.copies()) return copy(terms, width, begin, end, x, missing, y, past);
  const Whole<T> all;
  const Part<T> last(width % kLanes<T>);
  for (int64_t p = begin; p < end; ++p) {
    T* to = y.at(p);
    int64_t column = 0;
    for (; column + 4 * kLanes<T> <= width; column += 4 * kLanes<T>) gather_columns<4>(terms, p, x, missing, column, to, past, all);
    for (; column + kLanes<T> <= width; column += kLanes<T>) gather_columns<1>(terms, p, x, missing, column, to, past, all);
    if (column < width) gather_columns<1>(terms, p, x, missing, column, to, past, last);
  }
}

// x[index] = sum over entries of weight * g[p].
template <class T>
void scatter(const Terms<T>& terms, int64_t width, int64_t places, Rows<const T> g, Rows<T> x) {
  const Entries& entries = terms.entries;
  std::fill(x.data, x.at(x.count), T{0});
  for (int64_t p = 0; p < places; ++p) {
    for (int64_t e = entries.first(p), last = entries.end(p); e < last; e += entries.apart) {
      const int32_t i = terms.index[e];
      if (x.has(i) && i != terms.nothing) add(width, terms.weight_of(e), g.at(p), x.at(i));
    }
  }
}

// to[entry] += g[p] . x[index], for places from begin to end.
template <class T>
void dots(const Terms<T>& terms, int64_t width, int64_t begin, int64_t end, Rows<const T> g, Rows<const T> x, const T* missing, T* to) {
  const Entries& entries = terms.entries;
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t e = entries.first(p), last = entries.end(p); e < last; e += entries.apart) {
      const int32_t i = terms.index[e];
      if (i != terms.nothing) to[e] += dot(width, g.at(p), x.has(i) ? x.at(i) : missing);
    }
  }
}

// Calls run(n) for as many planes, kPlanes at most.
template <class Run, int... n>
void by_number(int64_t planes, const Run& run, std::integer_sequence<int, n...>) {
  (void)((planes == n + 1 && (run(std::integral_constant<int, n + 1>{}), true)) || ...);
}

// Calls run(n, channel) for n channels from `channel` on, until there were all.
template <class Run>
void by_planes(int64_t channels, const Run& run) {
  for (int64_t c = 0; c < channels; c += kPlanes)
    by_number(std::min(kPlanes, channels - c), [&](auto n) { run(n, c); }, std::make_integer_sequence<int, kPlanes>());
}

// An element of several planes, or `missing` for each. Without a branch, as which are there may be known to no predictor.
template <class T>
struct Element {
  T* data;
  int64_t pitch;
  Element(Rows<T> planes, int32_t i, T* missing) {
    const int64_t has = -static_cast<int64_t>(static_cast<uint32_t>(i) < static_cast<uint64_t>(planes.pitch));
    data = reinterpret_cast<T*>((reinterpret_cast<int64_t>(planes.data + i) & has) | (reinterpret_cast<int64_t>(missing) & ~has));
    pitch = planes.pitch & has;
  }
  T& of(int64_t plane) const { return data[plane * pitch]; }
};

// y[c][p] = sum over p's entries of weight * x[c][index], for n planes and places from begin to end.
template <int n, class T>
void gather_several(const Terms<T>& terms, int64_t begin, int64_t end, Rows<const T> x, T missing, Rows<T> y) {
  for (int64_t p = begin; p < end; ++p) {
    T sums[n]{};
    for (int64_t e = terms.entries.first(p), last = terms.entries.end(p); e < last; e += terms.entries.apart) {
      const Element<const T> element(x, terms.index[e], &missing);
      const T weight = terms.weight_of(e);
#pragma GCC unroll 8
      for (int c = 0; c < n; ++c) sums[c] += weight * element.of(c);
    }
#pragma GCC unroll 8
    for (int c = 0; c < n; ++c) y.at(c)[p] = sums[c];
  }
}

// y[c][p] = x[c][index], likewise.
template <int n, class T>
void copy_several(const Terms<T>& terms, int64_t begin, int64_t end, Rows<const T> x, T missing, Rows<T> y) {
  for (int64_t p = begin; p < end; ++p) {
    const Element<const T> element(x, terms.index[p], &missing);
#pragma GCC unroll 8
    for (int c = 0; c < n; ++c) y.at(c)[p] = element.of(c);
  }
}

// x[c][index] += sum over places of weight * g[c][p], for n planes.
template <int n, class T>
void scatter_several(const Terms<T>& terms, int64_t places, Rows<const T> g, Rows<T> x) {
  T nowhere{};
  for (int64_t p = 0; p < places; ++p) {
    T slopes[n];
#pragma GCC unroll 8
    for (int c = 0; c < n; ++c) slopes[c] = g.at(c)[p];
    for (int64_t e = terms.entries.first(p), last = terms.entries.end(p); e < last; e += terms.entries.apart) {
      const Element<T> element(x, terms.index[e], &nowhere);
      const T weight = terms.weight_of(e);
#pragma GCC unroll 8
      for (int c = 0; c < n; ++c) element.of(c) += weight * slopes[c];
    }
  }
}

// The same of samples of a plane, each of which has indices of its own, one a place: of a plane alone each sum waits for the one before.
template <int n, class T>
void scatter_apart(const Terms<T>& terms, int64_t places, Rows<const T> g, Rows<T> x) {
  T nowhere{};
  for (int64_t p = 0; p < places; ++p) {
#pragma GCC unroll 8
    for (int c = 0; c < n; ++c) Element<T>(x.from(c), terms.index[c * places + p], &nowhere).of(0) += g.at(c)[p];
  }
}

// to[entry] += sum over n planes of g[c][p] * x[c][index], for places from begin to end.
template <int n, class T>
void dots_several(const Terms<T>& terms, int64_t begin, int64_t end, Rows<const T> g, Rows<const T> x, T missing, T* to) {
  for (int64_t p = begin; p < end; ++p) {
    T slopes[n];
#pragma GCC unroll 8
    for (int c = 0; c < n; ++c) slopes[c] = g.at(c)[p];
    for (int64_t e = terms.entries.first(p), last = terms.entries.end(p); e < last; e += terms.entries.apart) {
      const Element<const T> element(x, terms.index[e], &missing);
      T sum{};
#pragma GCC unroll 8
      for (int c = 0; c < n; ++c) sum += slopes[c] * element.of(c);
      to[e] += sum;
    }
  }
}

// What is gathered from where: rows of `width` from (batch, count) to (batch, places), or in planes with the width second.
template <class T>
struct Problem {
  int64_t batch, width, count, places, entries;
  T missing;
  Terms<T> terms;

  Terms<T> of(int64_t n) const {
    return {terms.entries, terms.index + n * entries, terms.weight ? terms.weight + n * entries : nullptr, terms.nothing};
  }
  int64_t work() const { return batch * width * (entries + count); }
  std::vector<T> filled() const { return std::vector<T>(std::max(width, kWide), missing); }

  // Whether planes are read with channels side by side and not as they are.
  bool side_by_side(int64_t threads) const {
    if (terms.copies() || 4 * entries < count) return false;
    return 2 * width > kWide && batch * ((width + kWide - 1) / kWide) >= threads;
  }
  // As many, of those that are read at an index, as leave a task for each thread.
  int64_t planes_a_task(int64_t threads) const { return std::clamp<int64_t>(batch * width / threads, 1, kPlanes); }
};

// Calls run(task) for each task, which together are so much work, several of them at a time where they are small.
template <class Run>
void share(Pool& pool, int64_t work, int64_t tasks, const Run& run) {
  by_task(pool, tasks, std::max<int64_t>(1, work / tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run(task);
  });
}

// Places in parts, so that there are tasks enough where there are so many without.
template <class T>
Parts shares(const Pool& pool, const Problem<T>& problem, int64_t tasks) {
  const int64_t wanted = (kTasksAThread * pool.num_threads() + tasks - 1) / tasks;
  return Parts(problem.places, std::max<int64_t>(1, (problem.places + wanted - 1) / wanted));
}

// Of planes, those that a task has to do with: `channels` of them from `first` on, of sample n.
struct Block {
  int64_t n, first, channels;
};

template <class T>
class Blocks {
 public:
  Blocks(const Problem<T>& problem, int64_t most) : problem_(problem), each_(problem.width, most) {}
  int64_t count() const { return problem_.batch * each_.parts; }
  Block operator[](int64_t task) const {
    const int64_t part = task % each_.parts;
    return {task / each_.parts, each_.begin(part), each_.size(part)};
  }
  template <class U>
  Rows<U> pixels(const Block& block, U* x) const {
    return at(block, x, problem_.count);
  }
  template <class U>
  Rows<U> places(const Block& block, U* y) const {
    return at(block, y, problem_.places);
  }

 private:
  template <class U>
  Rows<U> at(const Block& block, U* planes, int64_t size) const {
    return {planes + (block.n * problem_.width + block.first) * size, block.channels, size};
  }
  const Problem<T>& problem_;
  const Parts each_;
};

// Up to kWide planes with their channels side by side.
template <class T>
class Channels {
 public:
  explicit Channels(int64_t size) : size_(size), own_(memory<T>(kWide * size)) {}
  Rows<T> rows() const { return {own_.get(), size_, kWide}; }
  // Of pixels or places from begin to end.
  Rows<const T> read(Rows<const T> planes, int64_t begin, int64_t end) {
    transpose(planes.data + begin, size_, planes.count, end - begin, own_.get() + begin * kWide, kWide);
    for (int64_t i = begin; planes.count < kWide && i < end; ++i)
      std::fill(own_.get() + i * kWide + planes.count, own_.get() + (i + 1) * kWide, T{0});
    return {own_.get(), size_, kWide};
  }
  void write(Rows<T> planes) const { transpose(own_.get(), kWide, size_, planes.count, planes.data, size_); }

 private:
  const int64_t size_;
  Memory<T> own_;
};

// Calls run(blocks, block, pixels, places) for all planes, side by side.
template <class T, class Run>
void each_beside(Pool& pool, const Problem<T>& problem, const Run& run) {
  const Blocks<T> blocks(problem, kWide);
  by_task(pool, blocks.count(), std::max<int64_t>(1, problem.work() / blocks.count()), 1, [&](int64_t begin, int64_t end) {
    Channels<T> pixels(problem.count), places(problem.places);
    for (int64_t i = begin; i < end; ++i) run(blocks, blocks[i], pixels, places);
  });
}

template <class T>
void gather_planes(Pool& pool, const Problem<T>& problem, const T* x, T* y) {
  const std::vector<T> missing = problem.filled();
  if (problem.side_by_side(pool.num_threads())) {
    return each_beside(pool, problem, [&](const Blocks<T>& blocks, const Block& block, Channels<T>& pixels, Channels<T>& places) {
      const Rows<const T> from = pixels.read(blocks.pixels(block, x), 0, problem.count);
      gather(problem.of(block.n), kWide, 0, problem.places, from, missing.data(), places.rows());
      places.write(blocks.places(block, y));
    });
  }
  const Blocks<T> blocks(problem, kPlanes);
  const Parts parts = shares(pool, problem, blocks.count());
  share(pool, problem.work(), blocks.count() * parts.parts, [&](int64_t task) {
    const Block block = blocks[task / parts.parts];
    const Rows<const T> from = blocks.pixels(block, x);
    const Rows<T> to = blocks.places(block, y);
    const Terms<T> terms = problem.of(block.n);
    const int64_t begin = parts.begin(task % parts.parts), end = parts.begin(task % parts.parts + 1);
    by_planes(block.channels, [&](auto n, int64_t c) {
      (terms.copies() ? copy_several<n, T> : gather_several<n, T>)(terms, begin, end, from.from(c), problem.missing, to.from(c));
    });
  });
}

template <class T>
void scatter_planes(Pool& pool, const Problem<T>& problem, const T* g, T* x) {
  if (problem.side_by_side(pool.num_threads())) {
    return each_beside(pool, problem, [&](const Blocks<T>& blocks, const Block& block, Channels<T>& pixels, Channels<T>& places) {
      const Rows<const T> from = places.read(blocks.places(block, g), 0, problem.places);
      scatter(problem.of(block.n), kWide, problem.places, from, pixels.rows());
      pixels.write(blocks.pixels(block, x));
    });
  }
  if (problem.width == 1 && problem.terms.single()) {
    return by_task(pool, problem.batch, problem.count + problem.places, 1, [&](int64_t begin, int64_t end) {
      std::fill(x + begin * problem.count, x + end * problem.count, T{0});
      const Rows<const T> from{g + begin * problem.places, end - begin, problem.places};
      const Rows<T> to{x + begin * problem.count, end - begin, problem.count};
      by_planes(end - begin, [&](auto n, int64_t i) { scatter_apart<n>(problem.of(begin + i), problem.places, from.from(i), to.from(i)); });
    });
  }
  const Blocks<T> blocks(problem, problem.planes_a_task(pool.num_threads()));
  share(pool, problem.work(), blocks.count(), [&](int64_t task) {
    const Block block = blocks[task];
    const Rows<const T> from = blocks.places(block, g);
    const Rows<T> to = blocks.pixels(block, x);
    std::fill(to.data, to.at(to.count), T{0});
    by_planes(block.channels,
              [&](auto n, int64_t c) { scatter_several<n>(problem.of(block.n), problem.places, from.from(c), to.from(c)); });
  });
}

template <class T>
void dots_planes(Pool& pool, const Problem<T>& problem, const T* g, const T* x, T* w) {
  const bool beside = 2 * problem.width > kWide && 4 * problem.entries >= problem.count;
  const Blocks<T> blocks(problem, problem.width);
  const std::vector<T> missing = problem.filled();
  const Parts parts = shares(pool, problem, problem.batch);
  share(pool, problem.work(), problem.batch * parts.parts, [&](int64_t task) {
    const Block block = blocks[task / parts.parts];
    const Terms<T> terms = problem.of(block.n);
    T* to = w + block.n * problem.entries;
    const int64_t begin = parts.begin(task % parts.parts), end = parts.begin(task % parts.parts + 1);
    const Rows<const T> slopes = blocks.places(block, g), from = blocks.pixels(block, x);
    if (!beside) {
      return by_planes(block.channels,
                       [&](auto n, int64_t c) { dots_several<n>(terms, begin, end, slopes.from(c), from.from(c), problem.missing, to); });
    }
    Channels<T> places(problem.places), pixels(problem.count);
    for (int64_t c = 0; c < block.channels; c += kWide) {
      const Rows<const T> left = places.read(slopes.from(c, kWide), begin, end);
      dots(terms, kWide, begin, end, left, pixels.read(from.from(c, kWide), 0, problem.count), missing.data(), to);
    }
  });
}

}  // namespace jnn::sampling
