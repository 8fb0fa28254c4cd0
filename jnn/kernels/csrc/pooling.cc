// Maxima over windows of planes, and where in its plane each stands.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "buffers.h"
#include "functions.h"
#include "geometry.h"
#include "lanes.h"
#include "memory.h"
#include "tasks.h"
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

// The greatest so far, the first of equal ones, and where it stands; NaN, the last one, once there is any.
template <class T>
struct Greatest {
  Vector<T> value;
  Integers<T> place;

  void see(Vector<T> other, Integers<T> there) {
    const Integers<T> better = (other > value) | (other != other);
    value = select<T>(better, other, value);
    place = better ? there : place;
  }
};

// A row's greatest values in each window.
template <class T>
class Row {
 public:
  explicit Row(const Axis& axis) : axis_(axis), first_(memory<Integer>(whole<T>(axis.out))) {
    for (int64_t tap = 0; tap < axis.size; ++tap) {
      const int64_t from = axis.place(0, tap), phase = (from % axis.stride + axis.stride) % axis.stride;
      taps_.push_back({phase, (from - phase) / axis.stride, from});
      phases_ = std::max(phases_, phase + 1);
    }
    margin_ = whole<T>(-std::min<int64_t>(0, taps_.front().shift));
    pitch_ = margin_ + std::max((axis.in - 1) / axis.stride + 1, std::max<int64_t>(0, taps_.back().shift) + whole<T>(axis.out)) + kLanes<T>;
    lines_ = memory<T>(phases_ * pitch_);
    std::fill_n(lines_.get(), phases_ * pitch_, -std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < whole<T>(axis.out); ++i) first_[i] = axis.place(i, axis.first(i));
  }

  void read(const T* row) {
    int64_t done = 0;
    if (axis_.stride == 1) {
      for (; done + kLanes<T> <= axis_.in; done += kLanes<T>) store(line(0) + done, load(row + done));
    } else if (axis_.stride == 2 && phases_ == 2) {
      for (; 2 * (done + kLanes<T>) <= axis_.in; done += kLanes<T>) {
        const auto [even, odd] = apart<T>(load(row + 2 * done), load(row + 2 * done + kLanes<T>));
        store(line(0) + done, even), store(line(1) + done, odd);
      }
    }
    for (int64_t phase = 0; phase < phases_; ++phase) {
      T* to = line(phase);
      for (int64_t i = done; i * axis_.stride + phase < axis_.in; ++i) to[i] = row[i * axis_.stride + phase];
    }
  }

  // Those of the windows from i on. Places are of the row that begins at the place `base`.
  Greatest<T> from(int64_t i, int64_t base) const {
    const auto every = numbered<T>(std::make_index_sequence<kLanes<T>>()) * static_cast<Integer>(axis_.stride);
    Greatest<T> found{broadcast(-std::numeric_limits<T>::infinity()), load<Integer>(first_.get() + i)};
    for (const Tap& tap : taps_)
      found.see(load(line(tap.phase) + tap.shift + i), every + static_cast<Integer>(i * axis_.stride + tap.from));
    found.place += static_cast<Integer>(base);
    return found;
  }

 private:
  using Integer = std::make_signed_t<Bits<T>>;
  struct Tap {
    int64_t phase, shift, from;
  };

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

template <class T>
void store_places(int32_t* to, Integers<T> places, int64_t count) {
  typedef int32_t Narrow __attribute__((vector_size(4 * kLanes<T>)));
  const Narrow narrow = __builtin_convertvector(places, Narrow);
  std::memcpy(to, &narrow, count * sizeof(int32_t));
}

// Maxima of planes, one after another, each of whose rows is read once.
template <class T>
class Planes {
 public:
  explicit Planes(const Axes& axes)
      : axes_(axes),
        row_(axes[2]),
        vectors_(whole<T>(axes[2].out) / kLanes<T>),
        along_(memory<Greatest<T>>(axes[0].in * axes[1].in * vectors_)) {}

  void run(const T* x, T* values, int32_t* places) {
    const auto& [depths, rows, columns] = axes_;
    int64_t left = depths.out * rows.out * columns.out, done = 0;
    for (int64_t d = 0; d < depths.out; ++d)
      for (int64_t r = 0; r < rows.out; ++r) {
        const int64_t last = depths.place(d, depths.end(d) - 1) * rows.in + rows.place(r, rows.end(r) - 1);
        for (; done <= last; ++done) read(done, x + done * columns.in);
        for (int64_t v = 0; v < vectors_; ++v) {
          const Greatest<T> greatest = across(d, r, v);
          // What is written behind a row is overwritten.
          const int64_t at = v * kLanes<T>, count = std::min<int64_t>(kLanes<T>, left - at);
          store_some(values + at, greatest.value, count);
          store_places<T>(places + at, greatest.place, count);
        }
        left -= columns.out, values += columns.out, places += columns.out;
      }
  }

 private:
  void read(int64_t row, const T* x) {
    row_.read(x);
    for (int64_t v = 0; v < vectors_; ++v) along_[row * vectors_ + v] = row_.from(v * kLanes<T>, row * axes_[2].in);
  }

  // The greatest of those of the rows in a window.
  Greatest<T> across(int64_t d, int64_t r, int64_t v) const {
    const auto& [depths, rows, columns] = axes_;
    Greatest<T> found;
    bool any = false;
    for (int64_t i = depths.first(d); i < depths.end(d); ++i)
      for (int64_t j = rows.first(r); j < rows.end(r); ++j) {
        const Greatest<T>& row = along_[(depths.place(d, i) * rows.in + rows.place(r, j)) * vectors_ + v];
        if (any) found.see(row.value, row.place);
        else found = row;
        any = true;
      }
    return found;
  }

  const Axes axes_;
  Row<T> row_;
  const int64_t vectors_;
  const Memory<Greatest<T>> along_;
};

// A run of neighbours along an axis for each bin, which may overlap.
struct Bins {
  const int64_t *starts, *sizes;
  int64_t in, out;
};
using AllBins = std::array<Bins, 3>;

// The greatest in one bin of a plane.
template <class T>
void greatest_of(const AllBins& bins, const Ints& bin, const T* x, T* value, int32_t* place) {
  using Integer = std::make_signed_t<Bits<T>>;
  constexpr T least = -std::numeric_limits<T>::infinity();
  const auto every = numbered<T>(std::make_index_sequence<kLanes<T>>());
  auto start = [&](int axis) { return bins[axis].starts[bin[axis]]; };
  auto end = [&](int axis) { return start(axis) + bins[axis].sizes[bin[axis]]; };
  auto at = [&](int64_t depth, int64_t row) { return (depth * bins[1].in + row) * bins[2].in + start(2); };
  Greatest<T> found{broadcast(least), every + static_cast<Integer>(at(start(0), start(1)))};
  // Whole rows are one run.
  const int64_t width = end(2) - start(2), rows = width == bins[2].in ? end(1) - start(1) : 1;
  for (int64_t depth = start(0); depth < end(0); ++depth)
    for (int64_t row = start(1); row < end(1); row += rows) {
      const int64_t begin = at(depth, row);
      vectors<T>(rows * width, [&](int64_t i, auto, auto lanes) {
        found.see(lanes.keep(lanes.load(x + begin + i), least), every + static_cast<Integer>(begin + i));
      });
    }
  T best = found.value[0];
  int64_t where = found.place[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) {
    const T other = found.value[lane];
    const int64_t there = found.place[lane];
    const bool better = other != other ? best == best || there > where : other > best || (other == best && there < where);
    if (better) best = other, where = there;
  }
  *value = best, *place = static_cast<int32_t>(where);
}

// x (*, *in) to the maxima (*, *out) and their places. The attributes are of its last axes.
ffi::Error maxima(Pool pool, Span size, Span stride, Span dilation, Span before, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> values,
                  ffi::ResultBuffer<ffi::S32> places) {
  Axes axes;
  for (size_t i = 0; i < size.size(); ++i) {
    const auto of = [&](auto dimensions) { return dimensions[dimensions.size() - size.size() + i]; };
    axes[3 - size.size() + i] = {of(x.dimensions()), of(values->dimensions()), size[i], stride[i], dilation[i], before[i]};
  }
  const int64_t in = axes[0].in * axes[1].in * axes[2].in, out = axes[0].out * axes[1].out * axes[2].out;
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    by_task(pool, x.element_count() / in, in, 1, [&](int64_t begin, int64_t end) {
      Planes<T> planes(axes);
      for (int64_t i = begin; i < end; ++i) planes.run(data<T>(x) + i * in, data<T>(values) + i * out, places->typed_data() + i * out);
    });
  });
}

// The same over bins; `starts` and `sizes` have those of the first axis first.
ffi::Error maxima_of_bins(Pool pool, Span starts, Span sizes, int64_t axes, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> values,
                          ffi::ResultBuffer<ffi::S32> places) {
  static constexpr int64_t kOnly = 0, kOne = 1;
  AllBins bins{{{&kOnly, &kOne, 1, 1}, {&kOnly, &kOne, 1, 1}, {&kOnly, &kOne, 1, 1}}};
  int64_t in = 1, out = 1;
  const int64_t *start = starts.begin(), *size = sizes.begin();
  for (int64_t i = 0; i < axes; ++i) {
    Bins& own = bins[3 - axes + i];
    own = {start, size, x.dimensions()[x.dimensions().size() - axes + i], values->dimensions()[values->dimensions().size() - axes + i]};
    start += own.out, size += own.out, in *= own.in, out *= own.out;
  }
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    by_task(pool, x.element_count() / in, in, 1, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane)
        for (int64_t i = 0; i < out; ++i) {
          const Ints bin{i / (bins[1].out * bins[2].out), i / bins[2].out % bins[1].out, i % bins[2].out};
          greatest_of(bins, bin, data<T>(x) + plane * in, data<T>(values) + plane * out + i, places->typed_data() + plane * out + i);
        }
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
                                  .Ret<ffi::Buffer<ffi::S32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_maxima_of_bins, maxima_of_bins,
                              ffi::Ffi::Bind()
                                  .Ctx<Pool>()
                                  .Attr<Span>("starts")
                                  .Attr<Span>("sizes")
                                  .Attr<int64_t>("axes")
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::S32>>());

}  // namespace jnn
