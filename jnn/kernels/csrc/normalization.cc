// Normalisation, (x - mean) / sqrt(variance + eps) * weight + bias, and its gradients.

#include "normalization.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>

#include "buffers.h"
#include "lanes.h"
#include "memory.h"
#include "moments.h"
#include "normalization_beside.h"
#include "parallel.h"
#include "products.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

// Gradients by weights of single numbers are sums of so many partial ones at most, each over so many rows at least.
constexpr int64_t kMostPartial = 32, kLeastRows = 4;
// Without a derivative there is more room in the cache: results up to this size stay there.
constexpr int64_t kPastCacheAlone = 16 << 20;
// Rows of columns that are read at a time.
constexpr int64_t kRows = 32;
// Numbers of items whose statistics are taken before the first is normalised, 8 KiB of 4 bytes: what needs no other waits for none.
constexpr int64_t kAhead = 2048;

// The weights of a vector of numbers, each its own or all one.
template <bool by_number, class T, class Lanes>
inline Vector<T> weights(const T* w, int64_t at, const Lanes& lanes) {
  if constexpr (by_number) return lanes.load(w + at);
  else return broadcast(*w);
}

template <class T>
void take_statistics(const Layout& l, const Forward<T>& a, int64_t item) {
  const int64_t runs = l.across ? l.runs() : 1;
  const Statistics<T> found = statistics(a.x + l.begin(item), runs, l.pitch(), l.across ? l.places : l.size(), l.centered);
  a.mean[item] = found.mean, a.variance[item] = found.variance;
}

template <bool by_number, class T>
void forward_item(const Layout& l, const Forward<T>& a, int64_t item) {
  const T mean = a.mean[item], scale = scale_of(l, a.variance[item]);
  const bool past = past_cache<T>(l.batch * l.sample(), l.most);
  for (int64_t run = 0; run < l.runs(); ++run) {
    const int64_t begin = l.begin(item) + run * l.pitch(), channel = l.group(item) * l.members + (l.across ? 0 : run);
    const T *x = a.x + begin, *w = a.w + channel, *b = a.b + channel;
    T* y = a.y + begin;
    vectors<T>(l.length(), [&](int64_t at, auto, auto lanes) {
      const Vector<T> factor = scale * weights<by_number>(w, at, lanes);
      if (l.centered) lanes.store(y + at, (lanes.load(x + at) - mean) * factor + weights<by_number>(b, at, lanes), past);
      else lanes.store(y + at, lanes.load(x + at) * factor, past);
    });
  }
}

// Those of a run. By number, they are weighted, and what they are sums of, unweighted, is added to dw and db.
template <bool by_number, class T>
Slopes<Vector<T>> slopes_of_run(int64_t n, const T* x, const T* g, const T* w, T mean, T scale, T* dw, T* db) {
  Vector<T> shifts[kWays] = {}, stretches[kWays] = {};
  vectors<T>(n, [&](int64_t at, auto way, auto lanes) {
    Vector<T> slope = lanes.load(g + at);
    const Vector<T> deviation = lanes.keep(lanes.load(x + at) - mean);
    if constexpr (by_number) {
      lanes.store(dw + at, lanes.load(dw + at) + slope * (deviation * scale));
      lanes.store(db + at, lanes.load(db + at) + slope);
      slope *= lanes.load(w + at);
    }
    shifts[way] += slope;
    stretches[way] += slope * deviation;
  });
  return {joined<T>(shifts), joined<T>(stretches)};
}

// dw and db are the item's: by number they are added to, else written.
template <bool by_number, class T>
void backward_item(const Layout& l, const Backward<T>& a, int64_t item, T* dw, T* db) {
  const T mean = l.centered ? a.mean[item] : 0, scale = scale_of(l, a.variance[item]);
  const T* w = a.w + l.group(item) * l.members;
  Slopes<Vector<T>> sums;
  for (int64_t run = 0; run < l.runs(); ++run) {
    const int64_t begin = l.begin(item) + run * l.pitch();
    const Slopes<Vector<T>> more = slopes_of_run<by_number>(l.length(), a.x + begin, a.g + begin, w, mean, scale, dw, db);
    const T factor = by_number || l.across ? T{1} : w[run];
    sums.shift += factor * more.shift;
    sums.stretch += factor * more.stretch;
    if (!by_number && !l.across) {
      db[run] = total<T>(more.shift);
      dw[run] = total<T>(more.stretch) * scale;
    }
  }
  Slopes<T> all{total<T>(sums.shift), total<T>(sums.stretch)};
  if (l.across) {
    *db = all.shift;
    *dw = all.stretch * scale;
    all = {all.shift * *w, all.stretch * *w};
  }
  const Slopes<T> off = shared<T>(l, scale, all);
  const bool past = past_cache<T>(l.batch * l.sample(), l.most);
  for (int64_t run = 0; run < l.runs(); ++run) {
    const int64_t begin = l.begin(item) + run * l.pitch();
    const T *x = a.x + begin, *g = a.g + begin, *of_run = w + (l.across ? 0 : run);
    T* dx = a.dx + begin;
    vectors<T>(l.length(), [&](int64_t at, auto, auto lanes) {
      const Vector<T> factor = scale * weights<by_number>(of_run, at, lanes), deviation = lanes.load(x + at) - mean;
      const Vector<T> less = deviation * off.stretch + off.shift;
      lanes.store(dx + at, lanes.load(g + at) * factor - less, past);
    });
  }
}

// Rows of a number for each column.
template <class T, int rows>
struct Columns {
  int64_t width;
  Memory<T> numbers;
  explicit Columns(int64_t width) : width(width), numbers(memory<T>(rows * width)) {}
  T* operator[](int row) const { return numbers.get() + row * width; }
};

// run(row, rows, at, columns, lanes) for blocks as above of some rows at a time, which stay in the cache.
template <class T, class Run>
void blocks_of_rows(int64_t batch, int64_t width, const Run& run) {
  for (int64_t row = 0; row < batch; row += kRows) {
    const int64_t rows = std::min(kRows, batch - row);
    blocks<T>(width, [&](int64_t at, auto columns, auto lanes) { run(row, rows, at, columns, lanes); });
  }
}

// The mean of each column of x, and the sum of squared deviations from it.
template <class T>
void moments_by_column(const Layout& l, const T* x, int64_t width, T* mean, T* square) {
  blocks_of_rows<T>(l.batch, width, [&](int64_t row, int64_t rows, int64_t at, auto count, auto lanes) {
    Moments<Vector<T>> found[count];
    moments_of_columns(x + row * l.sample() + at, rows, l.sample(), lanes, found);
    for (int i = 0; i < count; ++i, at += kLanes<T>) {
      Moments<Vector<T>> all = found[i];
      if (row) {
        all = {broadcast(T(row)), lanes.load(mean + at), lanes.load(square + at)};
        all.add(found[i]);
      }
      lanes.store(mean + at, all.mean);
      lanes.store(square + at, all.square);
    }
  });
}

// Of each column, the sum of g and that of g times x less the mean.
template <class T>
void slopes_by_column(const Layout& l, const T* x, const T* g, int64_t width, const T* mean, T* shift, T* stretch) {
  std::fill_n(shift, width, T{0});
  std::fill_n(stretch, width, T{0});
  blocks_of_rows<T>(l.batch, width, [&](int64_t begin, int64_t rows, int64_t at, auto count, auto lanes) {
    constexpr int columns = decltype(count)::value;
    Slopes<Vector<T>> sums[columns];
    for (int64_t row = begin; row < begin + rows; ++row)
#pragma GCC unroll 4
      for (int i = 0; i < columns; ++i) {
        const int64_t column = at + i * kLanes<T>, from = row * l.sample() + column;
        const Vector<T> slope = lanes.load(g + from);
        sums[i].shift += slope;
        sums[i].stretch += slope * (lanes.load(x + from) - lanes.load(mean + column));
      }
    for (int i = 0; i < columns; ++i, at += kLanes<T>) {
      lanes.store(shift + at, lanes.load(shift + at) + sums[i].shift);
      lanes.store(stretch + at, lanes.load(stretch + at) + sums[i].stretch);
    }
  });
}

// Channels from `first` on, column by column.
template <class T>
void forward_by_column(const Layout& l, const Forward<T>& a, int64_t first, int64_t channels) {
  const int64_t n = l.places, width = channels * n;
  const T* x = a.x + first * n;
  T* y = a.y + first * n;
  const Columns<T, 3> columns(width);
  T *mean = columns[0], *factor = columns[1], *bias = columns[2];
  moments_by_column(l, x, width, mean, factor);
  for (int64_t c = 0; c < channels; ++c) {
    const Statistics<T> s = together(mean + c * n, factor + c * n, n, T(l.batch));
    a.mean[first + c] = s.mean, a.variance[first + c] = s.variance;
    std::fill_n(mean + c * n, n, s.mean);
    std::fill_n(factor + c * n, n, scale_of(l, s.variance) * a.w[first + c]);
    std::fill_n(bias + c * n, n, a.b[first + c]);
  }
  const bool past = past_cache<T>(l.batch * l.sample(), l.most);
  for (int64_t row = 0; row < l.batch; ++row, x += l.sample(), y += l.sample())
    vectors<T>(width, [&](int64_t at, auto, auto lanes) {
      lanes.store(y + at, (lanes.load(x + at) - lanes.load(mean + at)) * lanes.load(factor + at) + lanes.load(bias + at), past);
    });
}

template <class T>
void backward_by_column(const Layout& l, const Backward<T>& a, int64_t first, int64_t channels) {
  const int64_t n = l.places, width = channels * n, pitch = l.sample();
  const T *x = a.x + first * n, *g = a.g + first * n;
  T* dx = a.dx + first * n;
  const Columns<T, 4> columns(width);
  T *mean = columns[0], *factor = columns[1], *shift = columns[2], *stretch = columns[3];
  for (int64_t c = 0; c < channels; ++c) std::fill_n(mean + c * n, n, a.mean[first + c]);
  slopes_by_column(l, x, g, width, mean, shift, stretch);
  for (int64_t c = 0; c < channels; ++c) {
    const T scale = scale_of(l, a.variance[first + c]), w = a.w[first + c];
    auto sum = [&](const T* of) { return std::accumulate(of + c * n, of + (c + 1) * n, T{0}); };
    const Slopes<T> all{sum(shift), sum(stretch)};
    a.db[first + c] = all.shift;
    a.dw[first + c] = all.stretch * scale;
    const Slopes<T> off = shared<T>(l, scale, Slopes<T>{all.shift * w, all.stretch * w});
    std::fill_n(factor + c * n, n, scale * w);
    std::fill_n(shift + c * n, n, off.shift);
    std::fill_n(stretch + c * n, n, off.stretch);
  }
  const bool past = past_cache<T>(l.batch * l.sample(), l.most);
  for (int64_t row = 0; row < l.batch; ++row, x += pitch, g += pitch, dx += pitch)
    vectors<T>(width, [&](int64_t at, auto, auto lanes) {
      const Vector<T> deviation = lanes.load(x + at) - lanes.load(mean + at);
      const Vector<T> less = deviation * lanes.load(stretch + at) + lanes.load(shift + at);
      lanes.store(dx + at, lanes.load(g + at) * lanes.load(factor + at) - less, past);
    });
}

// to[i] = sum over p < count of from[p * pitch + i]
template <class T>
void add_up(Pool& pool, int64_t count, int64_t pitch, const T* from, int64_t size, T* to) {
  by_task(pool, size, count, kLanes<T>, [&](int64_t begin, int64_t end) {
    std::copy(from + begin, from + end, to + begin);
    for (int64_t p = 1; p < count; ++p)
      for (int64_t i = begin; i < end; ++i) to[i] += from[p * pitch + i];
  });
}

// Gradients of items within samples: those by weights are added up from partial ones, of samples or, by number, of tasks.
template <bool by_number, class T>
void backward_of_samples(Pool& pool, const Layout& l, const Backward<T>& a) {
  const int64_t channels = l.channels(), most = std::clamp(l.items() / kLeastRows, int64_t{1}, kMostPartial);
  const Parts tasks(l.items(), std::max((l.items() + most - 1) / most, kTask / l.size()));
  const int64_t count = by_number ? tasks.parts : l.batch;
  const auto partial = memory<T>(2 * count * channels);
  parallel(pool, tasks.parts, [&](int64_t task) {
    const int64_t begin = tasks.begin(task), end = tasks.begin(task + 1);
    const auto to = [&](int64_t item) {
      return partial.get() + (by_number ? task : item / l.groups) * 2 * channels + l.group(item) * l.members;
    };
    if (by_number) std::fill_n(partial.get() + task * 2 * channels, 2 * channels, T{0});
    if (Beside<T>::suits(l)) {
      Beside<T> items(l);
      for (int64_t item = begin; item < end; item += kLanes<T>) items.backward(a, item, std::min<int64_t>(kLanes<T>, end - item), to);
      items.finish(begin, to);
    } else {
      for (int64_t item = begin; item < end; ++item) backward_item<by_number>(l, a, item, to(item), to(item) + channels);
    }
    streamed();
  });
  add_up(pool, count, 2 * channels, partial.get(), channels, a.dw);
  add_up(pool, count, 2 * channels, partial.get() + channels, channels, a.db);
}

// run(first, channels) for tasks of channels that are read column by column: as wide as is left for one a thread, on which no result
// depends.
template <class T, class Run>
void by_columns(Pool& pool, const Layout& l, const Run& run) {
  const int64_t least = std::max(kWays * kLanes<T> / l.places, l.groups / std::max<int64_t>(1, pool.num_threads()));
  by_task(pool, l.groups, l.size(), least, [&](int64_t begin, int64_t end) { run(begin, end - begin); });
}

template <class T>
void normalize(Pool& pool, const Layout& l, const Forward<T>& a) {
  if (l.by_column()) {
    by_columns<T>(pool, l, [&](int64_t first, int64_t channels) { forward_by_column(l, a, first, channels); });
  } else if (Beside<T>::suits(l)) {
    by_task(pool, l.items(), l.size(), kLanes<T>, [&](int64_t begin, int64_t end) {
      Beside<T> items(l);
      for (int64_t item = begin; item < end; item += kLanes<T>) items.forward(a, item, std::min<int64_t>(kLanes<T>, end - item));
    });
  } else {
    by_task(pool, l.items(), l.size(), 1, [&](int64_t begin, int64_t end) {
      const int64_t ahead = std::max(int64_t{1}, kAhead / l.size());
      for (int64_t first = begin; first < end; first += ahead) {
        const int64_t last = std::min(first + ahead, end);
        for (int64_t item = first; item < last; ++item) take_statistics(l, a, item);
        for (int64_t item = first; item < last; ++item) l.by_number() ? forward_item<true>(l, a, item) : forward_item<false>(l, a, item);
      }
    });
  }
}

template <class T>
void differentiate(Pool& pool, const Layout& l, const Backward<T>& a) {
  if (l.by_column()) {
    by_columns<T>(pool, l, [&](int64_t first, int64_t channels) { backward_by_column(l, a, first, channels); });
  } else if (l.across) {
    by_task(pool, l.groups, l.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) backward_item<false>(l, a, item, a.dw + item, a.db + item);
    });
  } else {
    l.by_number() ? backward_of_samples<true>(pool, l, a) : backward_of_samples<false>(pool, l, a);
  }
}

using Span = ffi::Span<const int64_t>;
using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

// What of a normalisation is no array. `firsts`: the axes of x that groups, members and places begin with.
Layout layout(const In& x, Span firsts, bool across, bool centered, double eps) {
  int64_t sizes[] = {1, 1, 1, 1};
  const auto dimensions = x.dimensions();
  for (int64_t axis = 0; axis < int64_t(dimensions.size()); ++axis)
    sizes[std::count_if(firsts.begin(), firsts.end(), [&](int64_t first) { return first <= axis; })] *= dimensions[axis];
  return {sizes[0], sizes[1], sizes[2], sizes[3], across, centered, eps};
}

// `alone`, without a derivative that reads x again.
ffi::Error forward(Pool pool, Span firsts, bool across, bool centered, double eps, bool alone, In x, In w, In b, Out y, Out mean,
                   Out variance) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Forward<T> arrays{data<T>(x), data<T>(w), data<T>(b), data<T>(y), data<T>(mean), data<T>(variance)};
    Layout whole = layout(x, firsts, across, centered, eps);
    if (alone) whole.most = kPastCacheAlone;
    normalize(pool, whole, arrays);
  });
}

ffi::Error backward(Pool pool, Span firsts, bool across, bool centered, double eps, In g, In x, In mean, In variance, In w, Out dx, Out dw,
                    Out db) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Backward<T> arrays{data<T>(g), data<T>(x), data<T>(mean), data<T>(variance), data<T>(w), data<T>(dx), data<T>(dw), data<T>(db)};
    differentiate(pool, layout(x, firsts, across, centered, eps), arrays);
  });
}

auto bound() { return ffi::Ffi::Bind().Ctx<Pool>().Attr<Span>("firsts").Attr<bool>("across").Attr<bool>("centered").Attr<double>("eps"); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_norm, forward, bound().Attr<bool>("alone").Arg<In>().Arg<In>().Arg<In>().Ret<In>().Ret<In>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_norm_backward, backward,
                              bound().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Ret<In>().Ret<In>().Ret<In>());

}  // namespace jnn
