// Normalisations of items of few numbers, which would not fill vectors: item by item in the lanes of a vector.
#pragma once

#include <algorithm>
#include <cstdint>

#include "functions.h"
#include "lanes.h"
#include "memory.h"
#include "moments.h"
#include "normalization.h"
#include "transpose.h"
#include "vector.h"

namespace jnn {

// As many neighbouring items as a vector has lanes, or fewer at the end.
template <class T>
class Beside {
 public:
  static bool suits(const Layout& l) { return !l.across && l.size() > 1 && l.size() <= kMost && l.items() >= kLanes<T>; }

  explicit Beside(const Layout& l)
      : l_(l),
        x_(numbers(l.size())),
        g_(numbers(l.size())),
        w_(numbers(l.members)),
        b_(numbers(l.members)),
        dw_(numbers(l.members)),
        db_(numbers(l.members)) {
    std::fill_n(dw_.get(), l.members * kLanes<T>, T{0}), std::fill_n(db_.get(), l.members * kLanes<T>, T{0});
  }

  void forward(const Forward<T>& a, int64_t item, int64_t count) {
    read(a.x, item, count, x_.get());
    spread(a.w, item, count, w_.get()), spread(a.b, item, count, b_.get());
    Moments<Vector<T>> found[1];
    moments_of_columns(x_.get(), l_.size(), kLanes<T>, Whole<T>{}, found, l_.centered);
    const Vector<T> mean = found->mean, variance = found->square / T(l_.size()), scale = scale_of(variance);
    store_some(a.mean + item, mean, count), store_some(a.variance + item, variance, count);
    for (int64_t m = 0; m < l_.members; ++m) {
      const Vector<T> factor = scale * of_member(w_, m), bias = of_member(b_, m);
      each(m, [&](T* x, T*) { store(x, (load(x) - mean) * factor + bias); });
    }
    write(a.y, item, count);
  }

  // `to(item)`: where the gradients by an item's weights are, those by its biases so many channels behind. By number they are added to,
  // else written.
  template <class To>
  void backward(const Backward<T>& a, int64_t item, int64_t count, const To& to) {
    read(a.x, item, count, x_.get()), read(a.g, item, count, g_.get());
    spread(a.w, item, count, w_.get());
    const Vector<T> scale = scale_of(load_some(a.variance + item, count));
    const Vector<T> mean = l_.centered ? load_some(a.mean + item, count) : Vector<T>{};
    const Part<T> counted(count);
    Slopes<Vector<T>> all;
    for (int64_t m = 0; m < l_.members; ++m) {
      Slopes<Vector<T>> own;
      each(m, [&](const T* x, const T* g) { own.shift += load(g), own.stretch += load(g) * (load(x) - mean); });
      all.shift += of_member(w_, m) * own.shift, all.stretch += of_member(w_, m) * own.stretch;
      add(dw_, m, counted.keep(own.stretch * scale)), add(db_, m, counted.keep(own.shift));
    }
    if (!l_.by_number() || l_.groups > 1) settle(item, count, to);
    const Slopes<Vector<T>> off = shared<T>(l_, scale, all);
    for (int64_t m = 0; m < l_.members; ++m) {
      const Vector<T> factor = scale * of_member(w_, m);
      each(m, [&](T* x, const T* g) { store(x, load(g) * factor - ((load(x) - mean) * off.stretch + off.shift)); });
    }
    write(a.dx, item, count);
  }

  // Items that have the same weights leave their gradients here.
  template <class To>
  void finish(int64_t item, const To& to) {
    if (l_.by_number() && l_.groups == 1) settle(item, kLanes<T>, [&](int64_t) { return to(item); });
  }

 private:
  // Longer ones fill vectors: by 5 of them they take 1.1 to 1.5 times as long side by side, by 2 three quarters.
  static constexpr int64_t kMost = 3 * kLanes<T>;

  static Memory<T> numbers(int64_t of_lane) { return memory<T>(of_lane * kLanes<T>); }

  Vector<T> scale_of(Vector<T> variance) const { return T{1} / root<T>(variance + T(l_.eps)); }

  void read(const T* from, int64_t item, int64_t count, T* to) const {
    transpose(from + l_.begin(item), l_.size(), count, l_.size(), to, kLanes<T>);
  }

  void write(T* to, int64_t item, int64_t count) const {
    transpose(x_.get(), kLanes<T>, l_.size(), count, to + l_.begin(item), l_.size(), 1, past_cache<T>(l_.batch * l_.sample(), l_.most));
  }

  // What members have one of, each item's in its lane.
  void spread(const T* from, int64_t item, int64_t count, T* to) const {
    if (l_.groups == 1) {
      for (int64_t m = 0; m < l_.members; ++m) store(to + m * kLanes<T>, broadcast(from[m]));
    } else {
      for (int64_t i = 0, group = item % l_.groups; i < count; ++i, group = group + 1 < l_.groups ? group + 1 : 0)
        for (int64_t m = 0; m < l_.members; ++m) to[m * kLanes<T> + i] = from[group * l_.members + m];
    }
  }

  static Vector<T> of_member(const Memory<T>& numbers, int64_t member) { return load(numbers.get() + member * kLanes<T>); }

  // run(x, g) for each place of a member.
  template <class Run>
  void each(int64_t member, const Run& run) const {
    for (int64_t at = member * l_.places * kLanes<T>, end = at + l_.places * kLanes<T>; at < end; at += kLanes<T>)
      run(x_.get() + at, g_.get() + at);
  }

  static void add(const Memory<T>& numbers, int64_t member, Vector<T> v) {
    T* to = numbers.get() + member * kLanes<T>;
    store(to, load(to) + v);
  }

  // The gradients by weights and biases go where they belong, lane by lane.
  template <class To>
  void settle(int64_t item, int64_t count, const To& to) {
    const bool by_number = l_.by_number();
    for (int64_t i = 0; i < count; ++i) {
      T *dw = to(item + i), *db = dw + l_.channels();
      for (int64_t m = 0; m < l_.members; ++m) {
        dw[m] = dw_[m * kLanes<T> + i] + (by_number ? dw[m] : 0);
        db[m] = db_[m * kLanes<T> + i] + (by_number ? db[m] : 0);
      }
    }
    std::fill_n(dw_.get(), l_.members * kLanes<T>, T{0}), std::fill_n(db_.get(), l_.members * kLanes<T>, T{0});
  }

  const Layout l_;
  const Memory<T> x_, g_, w_, b_, dw_, db_;
};

}  // namespace jnn
