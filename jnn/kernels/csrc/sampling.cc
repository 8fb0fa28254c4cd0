// Sums of rows at given indices, each times a number, and their gradients by the rows and by the numbers.

#include "sampling.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffers.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "tasks.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

using namespace sampling;

// Rows are cut into parts for several threads from so many columns a part on.
constexpr int64_t kLeastColumns = 32;

template <class T>
void gather_rows(Pool& pool, const Problem<T>& problem, const T* x, T* y) {
  const std::vector<T> missing = problem.filled();
  const Parts parts = shares(pool, problem, problem.batch);
  const bool past = past_cache<T>(problem.batch * problem.places * problem.width, problem.terms.copies() ? kPastCacheCopied : kPastCache);
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
  // The first row from `row` on, up to `end`, that has any or, not `any`, has none.
  int64_t next(int64_t row, int64_t end, bool any) const {
    while (row < end && (bounds_[row] < bounds_[row + 1]) != any) ++row;
    return row;
  }
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

// Zeros, `past` the cache or not, whose lines need not be those of rows.
template <class T>
void clear(T* from, T* to, bool past) {
  T* const line = past ? std::min(to, from + -(reinterpret_cast<uintptr_t>(from) / sizeof(T)) % kLanes<T>) : to;
  std::fill(from, line, T{0});
  vectors<T>(to - line, [&](int64_t at, auto, auto lanes) { lanes.store(line + at, Vector<T>{}, true); });
}

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
      const int64_t begin = rows.begin(row), end = rows.begin(row + 1);
      if (columns.parts > 1) return gather(sorted.terms(), columns.size(task / rows.parts), begin, end, from, from.data, to, past);
      for (int64_t at = begin; at < end;) {
        const int64_t some = sorted.next(at, end, true), none = sorted.next(some, end, false);
        clear(to.at(at), to.at(some), past);
        gather(sorted.terms(), width, some, none, from, from.data, to, past);
        at = none;
      }
    });
  }
}

template <class T>
void dots_rows(Pool& pool, const Problem<T>& problem, const T* g, const T* x, T* w) {
  const std::vector<T> missing = problem.filled();
  const Parts parts = shares(pool, problem, problem.batch);
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
