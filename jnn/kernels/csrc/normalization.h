// What normalisations are of: items that have a mean and a variance each.
#pragma once

#include <cmath>
#include <cstdint>

#include "tasks.h"

namespace jnn {

// Where statistics are taken across samples, rows of fewer places than these are read column by column.
constexpr int64_t kLeastPlaces = 16;

// x is (batch, groups, members, places), a weight (groups, members). Each group of each sample is an item, which has its mean and
// variance; `across` samples it is each group, of one member, in all of them. Items are read by runs of neighbours. Not `centered`, the
// mean counts as 0, and there is no bias.
struct Layout {
  int64_t batch, groups, members, places;
  bool across, centered;
  double eps;
  // Results of more bytes than these are written past the cache.
  int64_t most = kPastCache;

  int64_t channels() const { return groups * members; }
  int64_t sample() const { return channels() * places; }
  int64_t items() const { return across ? groups : batch * groups; }
  int64_t size() const { return members * places * (across ? batch : 1); }
  // Whether the numbers of a run have a weight each; else they share one.
  bool by_number() const { return !across && places == 1; }
  bool by_column() const { return across && places < kLeastPlaces; }
  int64_t length() const { return by_number() ? members : places; }
  // No divisions, which take longer than a row of few vectors.
  int64_t runs() const { return by_number() ? 1 : members * (across ? batch : 1); }
  int64_t group(int64_t item) const { return groups == 1 ? 0 : item % groups; }
  int64_t pitch() const { return across ? sample() : length(); }
  int64_t begin(int64_t item) const { return item * members * places; }
};

template <class T>
struct Forward {
  const T *x, *w, *b;
  T *y, *mean, *variance;
};

// The gradients by x, w and b for the cotangent g of y.
template <class T>
struct Backward {
  const T *g, *x, *mean, *variance, *w;
  T *dx, *dw, *db;
};

template <class T>
T scale_of(const Layout& l, T variance) {
  return 1 / std::sqrt(variance + T(l.eps));
}

// Sums of a cotangent, and of it times the deviations from a mean.
template <class V>
struct Slopes {
  V shift{}, stretch{};
};

// Of an item's weighted slopes, what all its gradients by x have off: g w scale - shift - deviation stretch.
template <class T, class V>
Slopes<V> shared(const Layout& l, V scale, Slopes<V> sums) {
  const T size = l.size();
  return {l.centered ? sums.shift * scale / size : V{}, sums.stretch * (scale * scale * scale) / size};
}

}  // namespace jnn
