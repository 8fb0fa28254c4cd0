// Grids of points in images and volumes: which elements each point is sampled from, and with which weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "functions.h"
#include "lanes.h"
#include "parallel.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {

constexpr int kMostAxes = 3;
template <int n>
using Number = std::integral_constant<int, n>;
enum Padding : int64_t { kZeros, kBorder, kReflection };

// Numbers of a line of the cache, or more.
constexpr int64_t kLine = 16;

// Along each axis a point is sampled from `taps` elements: the nearest, the two beside it, or the four of a cubic.
struct Form {
  int64_t taps;
  int64_t padding;
  bool aligned;
};

// (batch, places, axes) points, the last axis of the image first.
struct Grid {
  Form form;
  int64_t batch, places, axes;
  int64_t sizes[kMostAxes];

  Grid(const Form& form, ffi::AnyBuffer::Dimensions image, ffi::AnyBuffer::Dimensions points)
      : form(form), batch(points[0]), places(1), axes(points.back()) {
    for (int64_t a = 0; a < axes; ++a) places *= points[a + 1], sizes[a] = image[a + 2];
  }
  int64_t taps() const {
    int64_t product = 1;
    for (int64_t a = 0; a < axes; ++a) product *= form.taps;
    return product;
  }
  // Elements of a plane.
  int64_t count() const {
    int64_t product = 1;
    for (int64_t a = 0; a < axes; ++a) product *= sizes[a];
    return product;
  }
  // Taps of a point are so far apart: an odd number of lines, or those of large images would fall into one set of the cache.
  int64_t apart() const { return ((places + kLine - 1) / kLine | 1) * kLine; }
  int64_t entries() const { return apart() * taps(); }

  // Calls run(taps, axes), constants; cubics are of images.
  template <class Run>
  void as_constants(const Run& run) const {
    const auto of = [&](auto taps) { axes == 2 ? run(taps, Number<2>{}) : run(taps, Number<3>{}); };
    form.taps == 1 ? of(Number<1>{}) : form.taps == 2 ? of(Number<2>{}) : run(Number<4>{}, Number<2>{});
  }

  // Calls run(sample, first place, places) for as many points as a vector holds.
  template <class T, class Run>
  void each(Pool& pool, const Run& run) const {
    constexpr int64_t kWork = 4;
    const int64_t parts = (places + kLanes<T> - 1) / kLanes<T>;
    by_task(pool, batch * parts, kLanes<T> * taps() * kWork, 1, [&](int64_t begin, int64_t end) {
      int64_t n = begin / parts, part = begin % parts;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = part * kLanes<T>;
        run(n, first, std::min<int64_t>(kLanes<T>, places - first));
        if (++part == parts) ++n, part = 0;
      }
    });
  }
};

// Along one axis, for a vector of points: the elements, their weights, and how much these grow with the point's coordinate.
template <class T, int taps>
struct Taps {
  Vector<T> place[taps], weight[taps], slope[taps];
};

// Positions brought among `size` elements, and how much they move then: `slope` is what they would move by elsewhere.
template <class T>
void bring_inside(const Form& form, int64_t size, Vector<T>& x, Vector<T>& slope) {
  if (form.padding == kZeros) return;
  if (form.padding == kReflection) {
    const T low = form.aligned ? T(0) : T(-.5), span = form.aligned ? size - 1 : size;
    const Vector<T> offset = x - low, away = absolute<T>(offset), turns = floored<T>(away / span), rest = away - turns * span;
    const Integers<T> back = turns - T{2} * floored<T>(turns * T(.5)) != T{0};
    x = span == 0 ? Vector<T>{} : select<T>(back, span - rest, rest) + low;
    slope *= select<T>(back ^ (offset < T{0}), broadcast(T{-1}), broadcast(T{1}));
  }
  const T most = size - 1;
  const Integers<T> above = x > T{0}, below = x < most;
  slope = select<T>(above & below, slope, Vector<T>{});
  x = select<T>(above, select<T>(below, x, broadcast(most)), Vector<T>{});
}

// Keys' weights, a = -3/4, of points at t between the second and the third of four elements.
template <class T>
void weigh_cubic(Vector<T> t, T scale, Taps<T, 4>& taps) {
  constexpr T a = -.75;
  for (int k = 0; k < 4; ++k) {
    const bool near = k == 1 || k == 2;
    const Vector<T> x = k < 2 ? t + T(1 - k) : T(k - 1) - t;
    taps.weight[k] = near ? ((a + 2) * x - (a + 3)) * x * x + T{1} : ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    const Vector<T> growth = near ? (3 * (a + 2) * x - 2 * (a + 3)) * x : (3 * a * x - 10 * a) * x + 8 * a;
    taps.slope[k] = (k < 2 ? scale : -scale) * growth;
  }
}

template <class T, int count>
Taps<T, count> taps_of(const Form& form, int64_t size, Vector<T> coordinate) {
  const T scale = T(.5) * (form.aligned ? size - 1 : size);
  // With torch's roundings, which decide what is the nearest of two elements to a point half-way between them.
  Vector<T> position = (coordinate + T{1}) * scale - (form.aligned ? T{0} : T(.5)), slope = broadcast(scale);
  Taps<T, count> taps;
  if constexpr (count < 4) bring_inside<T>(form, size, position, slope);
  if constexpr (count == 1) {
    taps.place[0] = rounded<T>(position);
    return taps;
  }
  const Vector<T> left = floored<T>(position), far = position - left;
  if constexpr (count == 2) {
    taps.place[0] = left, taps.place[1] = left + T{1};
    taps.weight[0] = T{1} - far, taps.weight[1] = far;
    taps.slope[0] = -slope, taps.slope[1] = slope;
  } else if constexpr (count == 4) {
    weigh_cubic(far, scale, taps);
    for (int k = 0; k < 4; ++k) {
      taps.place[k] = left + T(k - 1);
      bring_inside<T>(form, size, taps.place[k], slope);
      taps.place[k] = rounded<T>(taps.place[k]);
    }
  }
  return taps;
}

// The taps of a vector of points along all axes. Tap t of a point is one of each axis', the last axis' changing first.
template <class T, int taps, int axes>
struct Vectors {
  using Integer = std::make_signed_t<Bits<T>>;
  Taps<T, taps> along[axes];
  const int64_t* sizes;
  static constexpr int kTaps = axes == 2 ? taps * taps : taps * taps * taps;

  Vectors(const Grid& grid, const T* points, int64_t count) : sizes(grid.sizes) {
    Vector<T> coordinates[axes] = {};
    if (axes == 2 && count == kLanes<T>) {
      std::tie(coordinates[1], coordinates[0]) = jnn::apart<T>(load(points), load(points + kLanes<T>));
    } else {
      for (int64_t i = 0; i < count; ++i)
        for (int a = 0; a < axes; ++a) coordinates[a][i] = points[(i + 1) * axes - 1 - a];
    }
    for (int a = 0; a < axes; ++a) along[a] = taps_of<T, taps>(grid.form, sizes[a], coordinates[a]);
  }

  // A vector for each axis, as points are.
  static void store_points(const Vector<T> (&of_axes)[axes], int64_t count, T* points) {
    for (int64_t i = 0; i < count; ++i)
      for (int a = 0; a < axes; ++a) points[(i + 1) * axes - 1 - a] = of_axes[a][i];
  }

  // Which of an axis' taps is that of tap t: digits of as many bits as count an axis' taps, 1, 2 or 4.
  static int of(int t, int axis) {
    constexpr int bits = taps / 2;
    return t >> bits * (axes - 1 - axis) & (taps - 1);
  }

  // Of the elements in order, or -1 where there is none.
  Integers<T> index(int t) const {
    Integers<T> exists = Integers<T>{} == 0;
    Integers<T> index{};
    for (int a = 0; a < axes; ++a) {
      const Vector<T> place = along[a].place[of(t, a)];
      const Integers<T> inside = (place >= T{0}) & (place <= T(sizes[a] - 1));
      const Vector<T> known = select<T>(inside, place, Vector<T>{});
      index = index * static_cast<Integer>(sizes[a]) + __builtin_convertvector(known, Integers<T>);
      exists &= inside;
    }
    return index | ~exists;
  }

  Vector<T> weight(int t) const {
    Vector<T> product = along[0].weight[of(t, 0)];
    for (int a = 1; a < axes; ++a) product *= along[a].weight[of(t, a)];
    return product;
  }

  // How much the weight grows with the coordinate along an axis.
  Vector<T> slope(int t, int axis) const {
    Vector<T> product = along[axis].slope[of(t, axis)];
    for (int a = 0; a < axes; ++a)
      if (a != axis) product *= along[a].weight[of(t, a)];
    return product;
  }
};

}  // namespace jnn
