// Arrays extended by what they hold themselves or by a number: each axis reads elements of its own, the number for indices below 0.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffers.h"
#include "lanes.h"
#include "packed.h"
#include "rows.h"
#include "tasks.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

using Span = ffi::Span<const int64_t>;

// Where an axis's elements come from: neighbours are copied at once, from the `begin`-th to the `end`-th of the longest run of them, if
// there is any.
struct Axis {
  Span from;
  int64_t begin = 0, end = 0;
  // Whether all others are the number.
  bool filled = true;

  explicit Axis(Span from) : from(from) {
    const int64_t count = from.size();
    for (int64_t first = 0, next; first < count; first = next) {
      for (next = first + 1; next < count && from[next - 1] >= 0 && from[next] == from[next - 1] + 1;) ++next;
      if (from[first] >= 0 && next - first > end - begin) begin = first, end = next;
    }
    for (int64_t i = 0; i < count; ++i) filled &= from[i] < 0 || (i >= begin && i < end);
  }

  // Whether it has all of `size` elements in their order, and the number before and after them.
  bool surrounds(int64_t size) const { return filled && end - begin == size; }

  template <class T>
  void copy(const T* row, T value, T* to) const {
    // Stores may change members for all that a compiler knows.
    const int64_t *const index = from.begin(), first = begin, last = end, count = from.size();
    const auto others = [=](int64_t i, int64_t stop) {
      if (filled) return fill(to + i, stop - i, value);
      for (; i < stop; ++i) to[i] = index[i] < 0 ? value : row[index[i]];
    };
    others(0, first);
    if (first < last) copy_short(row + index[first], last - first, to + first);
    others(last, count);
  }

  // Back to where they come from.
  template <class T>
  void add(const T* slopes, T* row) const {
    jnn::add(end - begin, T{1}, slopes + begin, row + from[begin]);
    add_others(slopes, row);
  }

  // The same where the row, of `size` numbers, has none yet. The run is written at once: to read it so after its elements were would wait
  // for them.
  template <class T>
  void set(const T* slopes, T* row, int64_t size) const {
    const int64_t first = begin < end ? from[begin] : 0, last = first + end - begin;
    std::fill(row, row + first, T{0});
    copy_short(slopes + begin, end - begin, row + first);
    std::fill(row + last, row + size, T{0});
    add_others(slopes, row);
  }

 private:
  template <class T>
  static void fill(T* to, int64_t count, T value) {
    for (int64_t i = 0; i < count; i += kLanes<T>) store_some(to + i, broadcast(value), count - i);
  }

  template <class T>
  void add_others(const T* slopes, T* row) const {
    const auto one = [&](int64_t i) {
      if (from[i] >= 0) row[from[i]] += slopes[i];
    };
    for (int64_t i = 0; i < begin; ++i) one(i);
    for (int64_t i = end; i < static_cast<int64_t>(from.size()); ++i) one(i);
  }
};

// Planes of short rows that are surrounded by the number. Vectors are written wherever rows begin: what a plane reads is one run.
template <class T>
class Planes {
 public:
  Planes(const Axis& rows, const Axis& columns)
      : width_(columns.from.size()),
        size_(rows.from.size() * width_),
        read_((rows.end - rows.begin) * (columns.end - columns.begin)),
        together_(std::max(kVectors * kLanes<T> / size_, int64_t{1})),
        vectors_(whole<T>(together_ * size_) / kLanes<T>) {
    for (int64_t p = 0; p < together_; ++p)
      for (int64_t y = rows.begin; y < rows.end; ++y) reads(p * size_ + y * width_ + columns.begin, columns.end - columns.begin);
    int32_t before = 0;
    for (Lanes& v : vectors_) v.before = before, before += __builtin_popcount(v.inside);
  }

  // Whether rows are so short: wider ones are as soon copied one by one.
  static bool are_short(const Axis& columns) { return int64_t(columns.from.size()) <= kVectors * kLanes<T>; }

  // Calls run(plane, count, from) for planes of all of (n, depths), up to `count` at once, which read the planes from `from` on of (n, in);
  // it is below 0 where they are the number alone.
  template <class Run>
  void by_task(Pool& pool, int64_t n, int64_t in, Span depths, const Run& run) const {
    const int64_t depth = depths.size(), together = depth == 1 ? together_ : 1;
    jnn::by_task(pool, n * depth, size_, 1, [&](int64_t begin, int64_t end) {
      for (; begin < end; begin += together) {
        const int64_t read = depths[begin % depth];
        run(begin, std::min(together, end - begin), read < 0 ? read : begin / depth * in + read);
      }
    });
  }

  void extend(const T* from, T value, int64_t planes, T* to) const {
    const Vector<T> others = broadcast(value);
    each(planes,
         [=](int64_t at, int64_t left, Lanes lanes) { store_some(to + at, spread(from + lanes.before, lanes.inside, others), left); });
  }

  void crop(const T* from, int64_t planes, T* to) const {
    const int64_t count = planes * read_;
    each(planes, [=](int64_t at, int64_t left, Lanes lanes) {
      store_some(to + lanes.before, packed<T>(load_some(from + at, left), lanes.inside), count - lanes.before);
    });
  }

  int64_t size() const { return size_; }
  int64_t read() const { return read_; }

 private:
  static constexpr int64_t kVectors = 8;

  // Which lanes of a vector read, and how many do before it.
  struct Lanes {
    Mask inside = 0;
    int32_t before = 0;
  };

  void reads(int64_t at, int64_t count) {
    for (const int64_t end = at + count; at < end; at = whole<T>(at + 1)) {
      const int64_t first = at % kLanes<T>;
      vectors_[at / kLanes<T>].inside |= between(first, std::min(first + end - at, int64_t{kLanes<T>}));
    }
  }

  template <class Run>
  void each(int64_t planes, const Run& run) const {
    int64_t at = 0;
    for (auto v = vectors_.begin(); at < planes * size_; ++v, at += kLanes<T>) run(at, planes * size_ - at, *v);
  }

  int64_t width_, size_, read_, together_;
  std::vector<Lanes> vectors_;
};

// x (N, *in) to (N, *out), of three axes each.
ffi::Error extended(Pool pool, Span depths, Span rows, Span columns, double value, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> out) {
  const auto in = x.dimensions();
  const int64_t lines = depths.size() * rows.size(), width = columns.size();
  if (!out->element_count()) return ffi::Error::Success();
  const Axis row(columns), column(rows);
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    if (row.surrounds(in[3]) && column.surrounds(in[2]) && Planes<T>::are_short(row)) {
      const Planes<T> planes(column, row);
      return planes.by_task(pool, in[0], in[1], depths, [&](int64_t plane, int64_t count, int64_t from) {
        T* to = data<T>(out) + plane * planes.size();
        if (from < 0) std::fill_n(to, planes.size(), static_cast<T>(value));
        else planes.extend(data<T>(x) + from * planes.read(), static_cast<T>(value), count, to);
      });
    }
    by_task(pool, in[0] * lines, width, 1, [&](int64_t begin, int64_t end) {
      const int64_t height = rows.size();
      int64_t n = begin / lines, z = begin / height % depths.size(), y = begin % height;
      for (int64_t line = begin; line < end; ++line) {
        T* to = data<T>(out) + line * width;
        if (depths[z] < 0 || rows[y] < 0) std::fill_n(to, width, static_cast<T>(value));
        else row.copy(data<T>(x) + ((n * in[1] + depths[z]) * in[2] + rows[y]) * in[3], static_cast<T>(value), to);
        if (++y == height) y = 0, ++z;
        if (z == static_cast<int64_t>(depths.size())) z = 0, ++n;
      }
    });
  });
}

// By pairs of a depth and a row: whether it is the first that reads what it reads, which may be none.
std::vector<char> first_of_each(Span depths, Span rows, int64_t height, int64_t count) {
  std::vector<char> seen(count), found;
  for (const int64_t depth : depths)
    for (const int64_t row : rows) {
      const bool reads = depth >= 0 && row >= 0;
      found.push_back(reads && !seen[depth * height + row]);
      if (reads) seen[depth * height + row] = true;
    }
  return found;
}

// Of g, that of the (N, *out), the gradient (N, *in).
ffi::Error extended_gradient(Pool pool, Span depths, Span rows, Span columns, double, ffi::AnyBuffer g, ffi::Result<ffi::AnyBuffer> out) {
  const auto in = out->dimensions();
  const int64_t size = in[1] * in[2] * in[3], lines = depths.size() * rows.size(), width = columns.size();
  const Axis row(columns), column(rows);
  const std::vector<char> first = first_of_each(depths, rows, in[2], in[1] * in[2]);
  const bool cropped = std::count(first.begin(), first.end(), true) < in[1] * in[2];
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    if (Axis(depths).surrounds(in[1]) && row.surrounds(in[3]) && column.surrounds(in[2]) && Planes<T>::are_short(row)) {
      const Planes<T> planes(column, row);
      return planes.by_task(pool, in[0], in[1], depths, [&](int64_t plane, int64_t count, int64_t from) {
        if (from >= 0) planes.crop(data<T>(g) + plane * planes.size(), count, data<T>(out) + from * planes.read());
      });
    }
    by_task(pool, in[0], size + lines * width, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* slopes = data<T>(g) + n * lines * width;
        T* to = data<T>(out) + n * size;
        if (cropped) std::fill_n(to, size, T{0});
        auto is_first = first.begin();
        for (const int64_t depth : depths)
          for (const int64_t line : rows) {
            if (depth >= 0 && line >= 0) {
              T* own = to + (depth * in[2] + line) * in[3];
              *is_first ? row.set(slopes, own, in[3]) : row.add(slopes, own);
            }
            ++is_first, slopes += width;
          }
      }
    });
  });
}

auto bound() {
  return ffi::Ffi::Bind()
      .Ctx<Pool>()
      .Attr<Span>("depths")
      .Attr<Span>("rows")
      .Attr<Span>("columns")
      .Attr<double>("value")
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_extended, extended, bound());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_extended_gradient, extended_gradient, bound());

}  // namespace jnn
