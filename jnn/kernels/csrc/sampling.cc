// Sums of rows at given indices, each times a number, and their gradients by the rows and by the numbers.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "buffers.h"
#include "lanes.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"
#include "tasks.h"
#include "transpose.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

// Rows are cut into parts for several threads from so many columns a part on.
constexpr int64_t kLeastColumns = 32;
// Planes are read with so many channels side by side, unless there are fewer or few places.
constexpr int64_t kWide = 16, kNarrow = 4;

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

// One place's sum over its entries of weight * x[index], in the columns from `column` on that n vectors V hold; `past` the cache or not.
template <class V, int n, class T>
inline void gather_columns(const Terms<T>& terms, int64_t p, Rows<const T> x, const T* missing, int64_t column, T* to, bool past) {
  V sums[n]{};
  for (int64_t e = terms.entries.first(p), end = terms.entries.end(p); e < end; e += terms.entries.apart) {
    const int32_t i = terms.index[e];
    if (i == terms.nothing) continue;
    const T* from = x.has(i) ? x.at(i) + column : missing;
    const T weight = terms.weight_of(e);
#pragma GCC unroll 4
    for (int j = 0; j < n; ++j) sums[j] += weight * read<V>(from + j * (sizeof(V) / sizeof(T)));
  }
  if constexpr (std::is_same_v<V, Vector<T>>) {
    for (int j = 0; j < n && past; ++j) stream(to + column + j * kLanes<T>, sums[j]);
    if (past) return;
  }
  std::memcpy(to + column, sums, sizeof sums);
}

// y[p] = x[index], for places from begin to end.
template <class T>
void copy(const Terms<T>& terms, int64_t width, int64_t begin, int64_t end, Rows<const T> x, const T* missing, Rows<T> y, bool past) {
  if (width == 1 && x.pitch == 1 && y.pitch == 1) {
    for (int64_t p = begin; p < end; ++p) y.data[p] = x.has(terms.index[p]) ? x.data[terms.index[p]] : *missing;
    return;
  }
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
  const int64_t whole = width - width % (4 * kLanes<T>);
  for (int64_t p = begin; p < end; ++p) {
    T* to = y.at(p);
    for (int64_t column = 0; column < whole; column += 4 * kLanes<T>) gather_columns<Vector<T>, 4>(terms, p, x, missing, column, to, past);
    by_vectors<T>(width - whole,
                  [&](auto zero, int64_t i) { gather_columns<decltype(zero), 1>(terms, p, x, missing, whole + i, to, past); });
  }
}

// x[index] = sum over entries of weight * g[p].
template <class T>
void scatter(const Terms<T>& terms, int64_t width, int64_t places, Rows<const T> g, Rows<T> x) {
  const Entries& entries = terms.entries;
  std::fill(x.data, x.at(x.count), T{0});
  if (width == 1 && terms.single()) {
    for (int64_t p = 0; p < places; ++p) {
      const int32_t i = terms.index[p];
      if (x.has(i) && i != terms.nothing) x.data[i] += *g.at(p);
    }
    return;
  }
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

  // Channels that are side by side: 1 where planes are read as they are.
  int64_t side_by_side(int64_t threads) const {
    if (terms.copies() || 4 * entries < count) return 1;
    for (int64_t wide : {kWide, kNarrow})
      if (2 * width > wide && batch * ((width + wide - 1) / wide) >= threads) return wide;
    return 1;
  }
};

// Calls run(task) for each task, which together are so much work, several of them at a time where they are small.
template <class Run>
void share(Pool& pool, int64_t work, int64_t tasks, const Run& run) {
  by_task(pool, tasks, std::max<int64_t>(1, work / tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run(task);
  });
}

// Planes with up to `wide` channels side by side; planes themselves where that is one.
template <class T>
class Channels {
 public:
  Channels(int64_t wide, int64_t count) : wide_(wide), count_(count), own_(wide == 1 ? nullptr : zeros<T>(wide * count)) {}
  Rows<T> rows(T* planes) const { return {own_ ? own_.get() : planes, count_, wide_}; }
  // `channels` planes of rows from begin to end, `pitch` apart.
  Rows<const T> read(const T* planes, int64_t pitch, int64_t channels, int64_t begin, int64_t end) {
    if (!own_) return {planes, count_, 1};
    transpose(planes + begin, pitch, channels, end - begin, own_.get() + begin * wide_, wide_);
    for (int64_t i = begin; channels < wide_ && i < end; ++i)
      std::fill(own_.get() + i * wide_ + channels, own_.get() + (i + 1) * wide_, T{0});
    return {own_.get(), count_, wide_};
  }
  void write(T* planes, int64_t channels) const {
    if (own_) transpose(own_.get(), wide_, count_, channels, planes, count_);
  }

 private:
  int64_t wide_, count_;
  Memory<T> own_;
};

template <class T>
void gather_planes(Pool& pool, const Problem<T>& problem, const T* x, T* y) {
  const int64_t wide = problem.side_by_side(pool.num_threads()), blocks = (problem.width + wide - 1) / wide;
  const std::vector<T> missing = problem.filled();
  share(pool, problem.work(), problem.batch * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, first = task % blocks * wide, channels = std::min(wide, problem.width - first);
    Channels<T> from(wide, problem.count), to(wide, problem.places);
    T* planes = y + (n * problem.width + first) * problem.places;
    const Rows<const T> rows = from.read(x + (n * problem.width + first) * problem.count, problem.count, channels, 0, problem.count);
    gather(problem.of(n), wide, 0, problem.places, rows, missing.data(), to.rows(planes));
    to.write(planes, channels);
  });
}

template <class T>
void scatter_planes(Pool& pool, const Problem<T>& problem, const T* g, T* x) {
  const int64_t wide = problem.side_by_side(pool.num_threads()), blocks = (problem.width + wide - 1) / wide;
  share(pool, problem.work(), problem.batch * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, first = task % blocks * wide, channels = std::min(wide, problem.width - first);
    Channels<T> from(wide, problem.places), to(wide, problem.count);
    T* planes = x + (n * problem.width + first) * problem.count;
    const Rows<const T> rows = from.read(g + (n * problem.width + first) * problem.places, problem.places, channels, 0, problem.places);
    scatter(problem.of(n), wide, problem.places, rows, to.rows(planes));
    to.write(planes, channels);
  });
}

template <class T>
void dots_planes(Pool& pool, const Problem<T>& problem, const T* g, const T* x, T* w) {
  const int64_t wide = 4 * problem.entries < problem.count ? 1 : problem.width > kNarrow ? kWide : kNarrow;
  const std::vector<T> missing = problem.filled();
  const Parts parts(problem.places, std::max<int64_t>(1, problem.places * problem.batch / pool.num_threads()));
  share(pool, problem.work(), problem.batch * parts.parts, [&](int64_t task) {
    const int64_t n = task / parts.parts, begin = parts.begin(task % parts.parts), end = parts.begin(task % parts.parts + 1);
    Channels<T> slopes(wide, problem.places), from(wide, problem.count);
    for (int64_t first = 0; first < problem.width; first += wide) {
      const int64_t channels = std::min(wide, problem.width - first);
      const Rows<const T> left = slopes.read(g + (n * problem.width + first) * problem.places, problem.places, channels, begin, end);
      const Rows<const T> right = from.read(x + (n * problem.width + first) * problem.count, problem.count, channels, 0, problem.count);
      dots(problem.of(n), wide, begin, end, left, right, missing.data(), w + n * problem.entries);
    }
  });
}

// Places in parts, so that there are tasks enough.
template <class T>
Parts shares(const Pool& pool, const Problem<T>& problem) {
  const int64_t wanted = (kTasksAThread * pool.num_threads() + problem.batch - 1) / problem.batch;
  return Parts(problem.places, std::max<int64_t>(1, (problem.places + wanted - 1) / wanted));
}

template <class T>
void gather_rows(Pool& pool, const Problem<T>& problem, const T* x, T* y) {
  const std::vector<T> missing = problem.filled();
  const Parts parts = shares(pool, problem);
  const bool past = past_cache<T>(problem.batch * problem.places * problem.width);
  share(pool, problem.batch * problem.entries * problem.width, problem.batch * parts.parts, [&](int64_t task) {
    const int64_t n = task / parts.parts, part = task % parts.parts, width = problem.width;
    const Rows<const T> from{x + n * problem.count * width, problem.count, width};
    const Rows<T> to{y + n * problem.places * width, problem.places, width};
    gather(problem.of(n), width, parts.begin(part), parts.begin(part + 1), from, missing.data(), to, past);
  });
}

// The entries of a sample by their row, in order: those of a row are of a sum over places.
template <class T>
class ByRow {
 public:
  ByRow(const Problem<T>& problem, const Terms<T>& terms)
      : count_(problem.count),
        bounds_(zeros<int32_t>(problem.count + 1)),
        places_(memory<int32_t>(problem.entries)),
        weights_(terms.weight ? memory<T>(problem.entries) : nullptr) {
    each(problem.places, terms, [&](int64_t, int64_t, int32_t row) { ++bounds_[row]; });
    most_ = *std::max_element(bounds_.get(), bounds_.get() + count_);
    // Each row's bound is where it ends and, once its entries have been put in place from the last on, where it begins.
    for (int64_t row = 1; row <= count_; ++row) bounds_[row] += bounds_[row - 1];
    each(problem.places, terms, [&](int64_t place, int64_t entry, int32_t row) {
      const int32_t at = --bounds_[row];
      places_[at] = place;
      if (terms.weight) weights_[at] = terms.weight[entry];
    });
  }

  // Of the row that has most.
  int64_t most() const { return most_; }
  Terms<T> terms() const { return {{bounds_.get(), 0, 0, 1}, places_.get(), weights_.get(), kNone}; }

 private:
  static constexpr int32_t kNone = -1;

  // Calls run(place, entry, row) for entries that have a row, from the last on.
  template <class Run>
  void each(int64_t places, const Terms<T>& terms, const Run& run) {
    const Entries& entries = terms.entries;
    for (int64_t p = places - 1; p >= 0; --p) {
      const int64_t first = entries.first(p), count = (entries.end(p) - first) / entries.apart;
      for (int64_t e = first + (count - 1) * entries.apart; e >= first; e -= entries.apart) {
        const int32_t i = terms.index[e];
        if (i >= 0 && i < count_ && i != terms.nothing) run(p, e, i);
      }
    }
  }

  const int64_t count_;
  int64_t most_ = 0;
  Memory<int32_t> bounds_, places_;
  Memory<T> weights_;
};

// Each row is written once, with the sum over its entries: most rows of an embedding have none.
template <class T>
void scatter_rows(Pool& pool, const Problem<T>& problem, const T* g, T* x) {
  const int64_t width = problem.width, count = problem.count, threads = pool.num_threads();
  const bool past = past_cache<T>(problem.batch * count * width);
  for (int64_t n = 0; n < problem.batch; ++n) {
    const ByRow<T> sorted(problem, problem.of(n));
    // Rows of very many entries are cut into columns for several threads.
    const int64_t wanted = kTasksAThread * threads,
                  uneven = std::min(wanted, sorted.most() * wanted / std::max<int64_t>(1, problem.entries));
    const Parts columns(width, std::max(kLeastColumns, width / std::max<int64_t>(1, uneven)));
    const Parts rows(count, std::max<int64_t>(1, count / wanted));
    share(pool, problem.work() / problem.batch, columns.parts * rows.parts, [&](int64_t task) {
      const int64_t column = columns.begin(task / rows.parts), row = task % rows.parts;
      const Rows<const T> from{g + n * problem.places * width + column, problem.places, width};
      const Rows<T> to{x + n * count * width + column, count, width};
      gather(sorted.terms(), columns.size(task / rows.parts), rows.begin(row), rows.begin(row + 1), from, from.data, to, past);
    });
  }
}

template <class T>
void dots_rows(Pool& pool, const Problem<T>& problem, const T* g, const T* x, T* w) {
  const std::vector<T> missing = problem.filled();
  const Parts parts = shares(pool, problem);
  share(pool, problem.batch * problem.entries * problem.width, problem.batch * parts.parts, [&](int64_t task) {
    const int64_t n = task / parts.parts, part = task % parts.parts, width = problem.width;
    const Rows<const T> left{g + n * problem.places * width, problem.places, width};
    const Rows<const T> right{x + n * problem.count * width, problem.count, width};
    dots(problem.of(n), width, parts.begin(part), parts.begin(part + 1), left, right, missing.data(), w + n * problem.entries);
  });
}

using Index = ffi::Buffer<ffi::S32>;

// What of a problem is neither sizes nor arrays.
struct Form {
  bool planes, ragged, weighted;
  double missing;
  int64_t nothing;
};

// `rows` are the sizes of what is gathered from, `sums` of what is gathered.
template <class T>
Problem<T> problem_of(const Form& form, ffi::AnyBuffer::Dimensions rows, ffi::AnyBuffer::Dimensions sums, const Index& index,
                      const Index& bounds, const T* weight) {
  const int64_t places = sums[form.planes ? 2 : 1], entries = index.element_count() / rows[0], each = form.ragged ? 0 : entries / places;
  const Entries of{form.ragged ? bounds.typed_data() : nullptr, each, form.planes ? 1 : each, form.planes ? places : 1};
  const int64_t width = rows[form.planes ? 1 : 2], count = rows[form.planes ? 2 : 1];
  const Terms<T> terms{of, index.typed_data(), form.weighted ? weight : nullptr, static_cast<int32_t>(form.nothing)};
  return {rows[0], width, count, places, entries, static_cast<T>(form.missing), terms};
}

ffi::Error sample(Pool pool, ffi::AnyBuffer x, ffi::AnyBuffer weight, Index index, Index bounds, ffi::Result<ffi::AnyBuffer> y, bool planes,
                  bool ragged, bool weighted, double missing, int64_t nothing) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto problem =
        problem_of({planes, ragged, weighted, missing, nothing}, x.dimensions(), y->dimensions(), index, bounds, data<T>(weight));
    (planes ? gather_planes<T> : gather_rows<T>)(pool, problem, data<T>(x), data<T>(y));
  });
}

ffi::Error by_rows(Pool pool, ffi::AnyBuffer g, ffi::AnyBuffer weight, Index index, Index bounds, ffi::Result<ffi::AnyBuffer> x,
                   bool planes, bool ragged, bool weighted, double missing, int64_t nothing) {
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto problem =
        problem_of({planes, ragged, weighted, missing, nothing}, x->dimensions(), g.dimensions(), index, bounds, data<T>(weight));
    (planes ? scatter_planes<T> : scatter_rows<T>)(pool, problem, data<T>(g), data<T>(x));
  });
}

ffi::Error by_weight(Pool pool, ffi::AnyBuffer g, ffi::AnyBuffer x, Index index, Index bounds, ffi::Result<ffi::AnyBuffer> w, bool planes,
                     bool ragged, bool weighted, double missing, int64_t nothing) {
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Form form{planes, ragged, weighted, missing, nothing};
    const auto problem = problem_of<T>(form, x.dimensions(), g.dimensions(), index, bounds, nullptr);
    std::fill_n(data<T>(w), index.element_count(), T{0});
    (planes ? dots_planes<T> : dots_rows<T>)(pool, problem, data<T>(g), data<T>(x), data<T>(w));
  });
}

auto bound() {
  return ffi::Ffi::Bind()
      .Ctx<Pool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<Index>()
      .Arg<Index>()
      .Ret<ffi::AnyBuffer>()
      .Attr<bool>("planes")
      .Attr<bool>("ragged")
      .Attr<bool>("weighted")
      .Attr<double>("missing")
      .Attr<int64_t>("nothing");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_sample, sample, bound());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_sample_by_rows, by_rows, bound());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_sample_by_weight, by_weight, bound());

}  // namespace jnn
