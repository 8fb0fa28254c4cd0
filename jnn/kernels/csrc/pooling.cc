// Maxima over windows of planes, and where in its plane each stands.

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "buffers.h"
#include "functions.h"
#include "geometry.h"
#include "greatest.h"
#include "lanes.h"
#include "memory.h"
#include "pooling_beside.h"
#include "tasks.h"
#include "transpose.h"
#include "vector.h"

namespace jnn {
namespace {

using Span = ffi::Span<const int64_t>;

// Windows along an axis of `in` places: the i-th of `out` has `size`, `dilation` apart, the first at i * stride - before. Those that are no
// places of the axis do not count, but of each window some are.
struct Axis {
  int64_t in = 1, out = 1, size = 1, stride = 1, dilation = 1, before = 0;

  int64_t place(int64_t i, int64_t tap) const { return i * stride - before + tap * dilation; }
  int64_t first(int64_t i) const { return std::max<int64_t>(0, (dilation - 1 - place(i, 0)) / dilation); }
  int64_t end(int64_t i) const { return std::min(size, (in - 1 - place(i, 0)) / dilation + 1); }
};

// A row's greatest values in each window.
template <class T>
class Row {
 public:
  // `placed`, their places too.
  Row(const Axis& axis, bool placed) : axis_(axis), first_(memory<Integer>(placed ? whole<T>(axis.out) : 0)) {
    for (int64_t tap = 0; tap < axis.size; ++tap) {
      const int64_t from = axis.place(0, tap), phase = (from % axis.stride + axis.stride) % axis.stride;
      taps_.push_back({phase, (from - phase) / axis.stride, from});
      phases_ = std::max(phases_, phase + 1);
    }
    margin_ = whole<T>(-std::min<int64_t>(0, taps_.front().shift));
    pitch_ = margin_ + std::max((axis.in - 1) / axis.stride + 1, std::max<int64_t>(0, taps_.back().shift) + whole<T>(axis.out)) + kLanes<T>;
    lines_ = memory<T>(phases_ * pitch_);
    std::fill_n(lines_.get(), phases_ * pitch_, -std::numeric_limits<T>::infinity());
    for (int64_t i = 0; placed && i < whole<T>(axis.out); ++i) first_[i] = axis.place(i, axis.first(i));
  }

  void read(const T* row) {
    const int64_t size = axis_.in, stride = axis_.stride;
    int64_t done = 0;
    if (stride == 1) {
      vectors<T>(size, [&](int64_t at, auto, auto lanes) { lanes.store(line(0) + at, lanes.load(row + at)); });
      return;
    }
    if (stride == 2 && phases_ == 2) {
      for (; 2 * done < size; done += kLanes<T>) {
        const int64_t at = 2 * done, next = at + kLanes<T>;
        const auto [even, odd] = apart<T>(filled(row + at, size - at), filled(row + next, size - next));
        store(line(0) + done, even), store(line(1) + done, odd);
      }
      return;
    }
    if (phases_ > kFew) {
      done = size / stride;
      transpose(row, stride, done, phases_, line(0), pitch_);
    }
    for (int64_t phase = 0; phase < phases_; ++phase)
      for (int64_t i = done; i * stride + phase < size; ++i) line(phase)[i] = row[i * stride + phase];
  }

  // run(i, values) for vectors of windows from i on, of a row without NaN.
  template <int count, class Run>
  void values(int64_t i, const Run& run) const {
    Vector<T> found[count];
#pragma GCC unroll 4
    for (int v = 0; v < count; ++v) found[v] = broadcast(-std::numeric_limits<T>::infinity());
    for (const Tap& tap : taps_) {
      const T* from = line(tap.phase) + tap.shift + i;
#pragma GCC unroll 4
      for (int v = 0; v < count; ++v) found[v] = greater<T>(load(from + v * kLanes<T>), found[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < count; ++v) run(i + v * kLanes<T>, found[v]);
  }

  // Those of the windows from i on. Places are of the row that begins at the place `base`.
  template <bool placed>
  Greatest<T, placed> from(int64_t i, int64_t base) const {
    const auto every = numbered<T>(std::make_index_sequence<kLanes<T>>()) * static_cast<Integer>(axis_.stride);
    Greatest<T, placed> found{broadcast(-std::numeric_limits<T>::infinity()), Integers<T>{}};
    if constexpr (placed) found.place = load<Integer>(first_.get() + i);
    for (const Tap& tap : taps_)
      found.see(load(line(tap.phase) + tap.shift + i), every + static_cast<Integer>(i * axis_.stride + tap.from));
    if constexpr (placed) found.place += static_cast<Integer>(base);
    found.settle();
    return found;
  }

 private:
  using Integer = std::make_signed_t<Bits<T>>;
  struct Tap {
    int64_t phase, shift, from;
  };

  // A vector of the next `left` numbers, and -infinity behind them.
  static Vector<T> filled(const T* from, int64_t left) {
    if (left >= kLanes<T>) return load(from);
    const Part<T> lanes(left);
    return lanes.keep(lanes.load(from), -std::numeric_limits<T>::infinity());
  }

  // What stands at the places that are `phase` more than a multiple of the stride, and before and behind them -infinity.
  T* line(int64_t phase) const { return lines_.get() + phase * pitch_ + margin_; }

  const Axis axis_;
  const Memory<Integer> first_;
  std::vector<Tap> taps_;
  int64_t phases_ = 1, margin_, pitch_;
  Memory<T> lines_;
};

// Depths, rows and columns.
using Axes = std::array<Axis, 3>;

// Maxima of planes, one after another, each of whose rows is read once.
template <class T, bool placed>
class Planes {
 public:
  explicit Planes(const Axes& axes)
      : axes_(axes),
        row_(axes[2], placed),
        vectors_(whole<T>(axes[2].out) / kLanes<T>),
        along_(memory<Found>(axes[0].in * axes[1].in * vectors_)) {}

  void run(const T* x, T* values, int32_t* places) {
    const auto& [depths, rows, columns] = axes_;
    if constexpr (!placed) {
      if (depths.in * rows.in == 1) return along_row(x, values);
    }
    int64_t left = depths.out * rows.out * columns.out, done = 0;
    for (int64_t d = 0; d < depths.out; ++d)
      for (int64_t r = 0; r < rows.out; ++r) {
        const int64_t last = depths.place(d, depths.end(d) - 1) * rows.in + rows.place(r, rows.end(r) - 1);
        for (; done <= last; ++done) read(done, x + done * columns.in);
        for (int64_t v = 0; v < vectors_; ++v) {
          const Found greatest = across(d, r, v);
          // What is written behind a row is overwritten.
          const int64_t at = v * kLanes<T>, count = std::min<int64_t>(kLanes<T>, left - at);
          store_some(values + at, greatest.value, count);
          if constexpr (placed) store_narrow<T>(places + at, greatest.place, count);
        }
        left -= columns.out, values += columns.out;
        if constexpr (placed) places += columns.out;
      }
  }

 private:
  using Found = Greatest<T, placed>;

  void along_row(const T* x, T* values) {
    row_.read(x);
    const bool ordered = !any_nan(x, axes_[2].in);
    blocks<T>(axes_[2].out, [&](int64_t at, auto count, auto lanes) {
      if (ordered) return row_.template values<count>(at, [&](int64_t i, Vector<T> v) { lanes.store(values + i, v); });
      for (int v = 0; v < count; ++v, at += kLanes<T>) lanes.store(values + at, row_.template from<false>(at, 0).value);
    });
  }

  void read(int64_t row, const T* x) {
    row_.read(x);
    for (int64_t v = 0; v < vectors_; ++v) along_[row * vectors_ + v] = row_.template from<placed>(v * kLanes<T>, row * axes_[2].in);
  }

  // The greatest of those of the rows in a window.
  Found across(int64_t d, int64_t r, int64_t v) const {
    const auto& [depths, rows, columns] = axes_;
    Found found;
    bool any = false;
    for (int64_t i = depths.first(d); i < depths.end(d); ++i)
      for (int64_t j = rows.first(r); j < rows.end(r); ++j) {
        const Found& row = along_[(depths.place(d, i) * rows.in + rows.place(r, j)) * vectors_ + v];
        if (any) found.see(row);
        else found = row;
        any = true;
      }
    found.settle();
    return found;
  }

  const Axes axes_;
  Row<T> row_;
  const int64_t vectors_;
  const Memory<Found> along_;
};

// A run of neighbours along an axis for each bin, which may overlap.
struct Bins {
  const int64_t *starts, *sizes;
  int64_t in, out;

  // Whether each fills a vector, and all several lanes of one.
  template <class T>
  bool fill_vectors() const {
    return out >= kLanes<T> / 4 && *std::min_element(sizes, sizes + out) >= kLanes<T>;
  }

  // Whether they are even, narrow and enough to be side by side in vectors.
  template <class T>
  bool fit_beside() const {
    if (out < std::max(2, kLanes<T> / 2) || sizes[0] > 4 * kLanes<T>) return false;
    for (int64_t i = 0; i < out; ++i)
      if (sizes[i] != sizes[0] || starts[i] != i * starts[1]) return false;
    return true;
  }
};
using AllBins = std::array<Bins, 3>;

// Rows that are read from end to end, of a bin: 0.5 to 1 of the time.
constexpr int64_t kManyRows = 3;

// Maxima of bins of planes: down the columns of those of some rows, and then along them.
template <class T, bool placed>
class BinsOfPlanes {
 public:
  explicit BinsOfPlanes(const AllBins& bins)
      : bins_(bins),
        values_(memory<T>(whole<T>(bins[2].in) + kLanes<T>)),
        places_(memory<Integer>(placed ? whole<T>(bins[2].in) + kLanes<T> : 0)),
        filled_(!placed && bins[2].fill_vectors<T>()),
        beside_(!placed && !filled_ && bins[2].fit_beside<T>()),
        lines_(memory<T>(beside_ ? bins[2].sizes[0] * whole<T>(bins[2].out) : 0)) {}

  void run(const T* x, int64_t planes, T* values, int32_t* places) const {
    const bool one = bins_[0].in * bins_[1].in == 1;
    if (one && filled_) return in_vectors(x, planes, values);
    const int64_t in = bins_[0].in * bins_[1].in * bins_[2].in, out = bins_[0].out * bins_[1].out * bins_[2].out;
    for (int64_t i = 0; i < planes; ++i) run(x + i * in, one, values + i * out, places + (placed ? i * out : 0));
  }

 private:
  using Integer = std::make_signed_t<Bits<T>>;
  using Found = Greatest<T, placed>;
  static constexpr T kLeast = -std::numeric_limits<T>::infinity();

  // A bin of a row.
  struct Place {
    const T* row;
    int64_t bin;
  };

  void run(const T* x, bool one, T* values, int32_t* places) const {
    const T* row = one ? x : values_.get();
    for (int64_t d = 0; d < bins_[0].out; ++d)
      for (int64_t r = 0; r < bins_[1].out; ++r) {
        if (!one && !by_row(d, r, x)) blocks<T>(bins_[2].in, [&](int64_t at, auto count, auto lanes) { down<count>(d, r, at, x, lanes); });
        if (filled_ || beside_) {
          filled_ ? in_vectors(row, 1, values) : side_by_side(row, values);
          values += bins_[2].out;
          continue;
        }
        for (int64_t column = 0; column < bins_[2].out; ++column) {
          const Found found = greatest(column, row, one);
          *values++ = found.value[0];
          if constexpr (placed) *places++ = static_cast<int32_t>(found.place[0]);
        }
      }
  }

  // Of vectors of columns from `at` on.
  template <int count, class Lanes>
  void down(int64_t depth_bin, int64_t row_bin, int64_t at, const T* x, const Lanes& lanes) const {
    const auto& [depths, rows, columns] = bins_;
    const int64_t depth = depths.starts[depth_bin], row = rows.starts[row_bin];
    const auto every = numbered<T>(std::make_index_sequence<kLanes<T>>());
    const auto place = [&](int64_t d, int64_t r, int v) { return (d * rows.in + r) * columns.in + at + v * kLanes<T>; };
    Found found[count];
#pragma GCC unroll 4
    for (int v = 0; v < count; ++v) found[v] = {broadcast(kLeast), every + static_cast<Integer>(place(depth, row, v))};
    for (int64_t d = depth; d < depth + depths.sizes[depth_bin]; ++d)
      for (int64_t r = row; r < row + rows.sizes[row_bin]; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < count; ++v) {
          const T* from = x + place(d, r, v);
          __builtin_prefetch(from + rows.sizes[row_bin] * columns.in);
          found[v].see(lanes.load(from), every + static_cast<Integer>(place(d, r, v)));
        }
#pragma GCC unroll 4
    for (int v = 0; v < count; ++v) {
      found[v].settle();
      store(values_.get() + at + v * kLanes<T>, found[v].value);
      if constexpr (placed) store(places_.get() + at + v * kLanes<T>, found[v].place);
    }
  }

  // Values of columns, row by row as they lie; false if that is not asked for, of too few rows, or not right as the sum of some is no
  // number, as with NaN it is not.
  bool by_row(int64_t depth_bin, int64_t row_bin, const T* x) const {
    const auto& [depths, rows, columns] = bins_;
    if (placed || depths.sizes[depth_bin] * rows.sizes[row_bin] < kManyRows) return false;
    T* best = values_.get();
    Vector<T> sum{};
    bool first = true;
    for (int64_t d = depths.starts[depth_bin]; d < depths.starts[depth_bin] + depths.sizes[depth_bin]; ++d)
      for (int64_t r = rows.starts[row_bin]; r < rows.starts[row_bin] + rows.sizes[row_bin]; ++r, first = false) {
        const T* row = x + (d * rows.in + r) * columns.in;
        vectors<T>(columns.in, [&](int64_t at, auto, auto lanes) {
          const Vector<T> other = lanes.load(row + at);
          sum += other;
          store(best + at, first ? other : greater<T>(load(best + at), other));
        });
      }
    return !any<T>(sum != sum);
  }

  // Of all bins of `rows` rows, each of which fills a vector; one by one where the sum of some is no number, as with NaN it is not.
  void in_vectors(const T* row, int64_t rows, T* values) const {
    const auto& [starts, sizes, in, out] = bins_[2];
    Place place{row, 0};
    const auto next = [&, in = in, out = out](Place& at) {
      if (++at.bin == out) at = {at.row + in, 0};
    };
    for (int64_t done = 0; done < rows * out; done += kLanes<T>) {
      const int64_t count = std::min<int64_t>(kLanes<T>, rows * out - done);
      Place again = place;
      Vector<T> found[kLanes<T>], sums{};
      std::fill(found + count, found + kLanes<T>, sums);
      for (int64_t i = 0; i < count; ++i, next(place)) {
        const T* at = place.row + starts[place.bin];
        const T* const last = at + sizes[place.bin] - kLanes<T>;
        Vector<T> best = broadcast(kLeast), sum{};
        for (; at < last; at += kLanes<T>) {
          const Vector<T> other = load(at);
          best = greater<T>(best, other), sum += other;
        }
        // The last vector has some of the one before, too.
        best = greater<T>(best, load(last)), sums += sum + load(last);
        found[i] = best;
      }
      if (any<T>(sums != sums))
        for (int64_t i = 0; i < count; ++i, next(again)) values[done + i] = of_row(again.bin, again.row).value[0];
      else store_some(values + done, greatest_lanes<T>(found), count);
    }
  }

  // Of all bins of a row, which is transposed for it.
  void side_by_side(const T* row, T* values) const {
    const auto& [starts, sizes, in, out] = bins_[2];
    const int64_t pitch = whole<T>(out);
    transpose(row, starts[1], out, sizes[0], lines_.get(), pitch);
    for (int64_t at = 0; at < out; at += kLanes<T>) {
      Found found{load(lines_.get() + at), Integers<T>{}};
      for (int64_t place = 1; place < sizes[0]; ++place) found.see(load(lines_.get() + place * pitch + at), Integers<T>{});
      found.settle();
      store_some(values + at, found.value, out - at);
    }
  }

  // Of a row, in the first lane.
  Found of_row(int64_t bin, const T* row) const {
    const int64_t start = bins_[2].starts[bin];
    const auto every = numbered<T>(std::make_index_sequence<kLanes<T>>()) + static_cast<Integer>(start);
    Found found[kWays];
    for (Found& own : found) own = {broadcast(kLeast), every};
    vectors<T>(bins_[2].sizes[bin], [&](int64_t at, auto way, auto lanes) {
      found[way].see(lanes.keep(lanes.load(row + start + at), kLeast), every + static_cast<Integer>(at));
    });
    found[0].join(found[1]), found[2].join(found[3]), found[0].join(found[2]);
    found[0].join_lanes();
    return found[0];
  }

  Found greatest(int64_t bin, const T* row, bool one) const {
    if constexpr (placed) {
      if (!one) return along(bin);
    }
    return of_row(bin, row);
  }

  // Of those of columns, in the first lane.
  Found along(int64_t column_bin) const {
    constexpr Integer kBehind = std::numeric_limits<Integer>::max();
    const int64_t start = bins_[2].starts[column_bin];
    Found found{broadcast(kLeast), broadcast(kBehind)};
    vectors<T>(bins_[2].sizes[column_bin], [&](int64_t at, auto, auto lanes) {
      found.join({lanes.keep(load(values_.get() + start + at), kLeast), lanes.keep(load(places_.get() + start + at), kBehind)});
    });
    found.join_lanes();
    return found;
  }

  const AllBins bins_;
  const Memory<T> values_;
  const Memory<Integer> places_;
  const bool filled_, beside_;
  const Memory<T> lines_;
};

// Whether planes of `in` numbers are so small and so many that they are side by side in vectors.
template <class T>
bool fit_beside(int64_t in, int64_t planes, int64_t threads) {
  constexpr int64_t kMost = 4096;
  return in <= kMost && planes >= kLanes<T> * threads;
}

// Whether bins are too narrow to fill vectors.
template <class T>
bool are_narrow(const AllBins& bins, bool placed) {
  constexpr int64_t kNarrow = 4 * kLanes<T>;
  if (!placed && bins[0].in * bins[1].in == 1 && bins[2].out >= kLanes<T> && bins[2].fit_beside<T>()) return false;
  return bins[2].in / bins[2].out < kNarrow;
}

// Whether windows are faster side by side than row by row: 0.2 to 0.9 of the time, of longer rows or larger planes up to 1.5.
template <class T>
bool are_narrow(const Axes& axes, bool placed) {
  constexpr int64_t kNarrow = 3 * kLanes<T>, kMostPlaced = 1024;
  const int64_t rows = axes[0].in * axes[1].in;
  return rows == 1 ? axes[2].out < kNarrow : !placed || rows * axes[2].in <= kMostPlaced;
}

std::array<Runs, 3> runs_of(const AllBins& bins) {
  std::array<Runs, 3> found;
  for (int d = 0; d < 3; ++d) {
    found[d].in = bins[d].in;
    for (int64_t i = 0; i < bins[d].out; ++i) found[d].windows.push_back({bins[d].starts[i], bins[d].sizes[i], 1});
  }
  return found;
}

std::array<Runs, 3> runs_of(const Axes& axes) {
  std::array<Runs, 3> found;
  for (int d = 0; d < 3; ++d) {
    const Axis& axis = axes[d];
    found[d].in = axis.in;
    for (int64_t i = 0; i < axis.out; ++i) {
      const int64_t first = axis.first(i);
      found[d].windows.push_back({axis.place(i, first), axis.end(i) - first, axis.dilation});
    }
  }
  return found;
}

// Maxima over windows of planes, side by side.
template <class T, bool placed>
void by_side(Pool& pool, const std::array<Runs, 3>& axes, int64_t planes, const T* x, T* values, int32_t* places) {
  const int64_t in = axes[0].in * axes[1].in * axes[2].in, out = axes[0].out() * axes[1].out() * axes[2].out();
  by_task(pool, planes, in, kLanes<T>, [&](int64_t begin, int64_t end) {
    Beside<T, placed> beside(axes);
    for (int64_t i = begin; i < end; i += kLanes<T>)
      beside.run(x + i * in, std::min<int64_t>(kLanes<T>, end - i), values + i * out, places + (placed ? i * out : 0));
  });
}

// Maxima over windows of planes of `in` numbers, side by side or by run(placed, begin, end).
template <class T, class Windows, class Run>
void each_plane(Pool& pool, const Windows& windows, int64_t in, int64_t planes, const T* x, T* values, int32_t* places, const Run& run) {
  const auto each = [&](auto placed) {
    if (are_narrow<T>(windows, placed) && fit_beside<T>(in, planes, pool.num_threads()))
      return by_side<T, placed>(pool, runs_of(windows), planes, x, values, places);
    by_task(pool, planes, in, 1, [&](int64_t begin, int64_t end) { run(placed, begin, end); });
  };
  places ? each(std::true_type{}) : each(std::false_type{});
}

int32_t* places_in(ffi::RemainingRets& rest) { return rest.size() ? (*rest.get<ffi::Buffer<ffi::S32>>(0))->typed_data() : nullptr; }

// x (*, *in) to the maxima (*, *out) and, where they are wanted, their places. The attributes are of its last axes.
ffi::Error maxima(Pool pool, Span size, Span stride, Span dilation, Span before, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> values,
                  ffi::RemainingRets rest) {
  Axes axes;
  for (size_t i = 0; i < size.size(); ++i) {
    const auto of = [&](auto dimensions) { return dimensions[dimensions.size() - size.size() + i]; };
    axes[3 - size.size() + i] = {of(x.dimensions()), of(values->dimensions()), size[i], stride[i], dilation[i], before[i]};
  }
  const int64_t in = axes[0].in * axes[1].in * axes[2].in, out = axes[0].out * axes[1].out * axes[2].out;
  int32_t* places = places_in(rest);
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    each_plane<T>(pool, axes, in, x.element_count() / in, data<T>(x), data<T>(values), places,
                  [&](auto placed, int64_t begin, int64_t end) {
                    Planes<T, placed> found(axes);
                    for (int64_t i = begin; i < end; ++i)
                      found.run(data<T>(x) + i * in, data<T>(values) + i * out, places + (placed ? i * out : 0));
                  });
  });
}

// The same over bins; `starts` and `sizes` have those of the first axis first.
ffi::Error maxima_of_bins(Pool pool, Span starts, Span sizes, int64_t axes, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> values,
                          ffi::RemainingRets rest) {
  static constexpr int64_t kOnly = 0, kOne = 1;
  AllBins bins{{{&kOnly, &kOne, 1, 1}, {&kOnly, &kOne, 1, 1}, {&kOnly, &kOne, 1, 1}}};
  int32_t* places = places_in(rest);
  int64_t in = 1, out = 1;
  const int64_t *start = starts.begin(), *size = sizes.begin();
  for (int64_t i = 0; i < axes; ++i) {
    Bins& own = bins[3 - axes + i];
    own = {start, size, x.dimensions()[x.dimensions().size() - axes + i], values->dimensions()[values->dimensions().size() - axes + i]};
    start += own.out, size += own.out, in *= own.in, out *= own.out;
  }
  const bool whole = std::all_of(bins.begin(), bins.end(), [](const Bins& own) { return own.sizes[0] == own.in; });
  if (whole && out == 1) bins = {{{&kOnly, &kOne, 1, 1}, {&kOnly, &kOne, 1, 1}, {&kOnly, &in, in, 1}}};
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    each_plane<T>(pool, bins, in, x.element_count() / in, data<T>(x), data<T>(values), places,
                  [&](auto placed, int64_t begin, int64_t end) {
                    const BinsOfPlanes<T, placed> found(bins);
                    found.run(data<T>(x) + begin * in, end - begin, data<T>(values) + begin * out, places + (placed ? begin * out : 0));
                  });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_maxima, maxima,
                              ffi::Ffi::Bind()
                                  .Ctx<Pool>()
                                  .Attr<Span>("size")
                                  .Attr<Span>("stride")
                                  .Attr<Span>("dilation")
                                  .Attr<Span>("before")
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_maxima_of_bins, maxima_of_bins,
                              ffi::Ffi::Bind()
                                  .Ctx<Pool>()
                                  .Attr<Span>("starts")
                                  .Attr<Span>("sizes")
                                  .Attr<int64_t>("axes")
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .RemainingRets());

}  // namespace jnn
