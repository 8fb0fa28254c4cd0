// Samples of images and volumes at the points of grids, and their gradients by the images and by the points.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>

#include "buffers.h"
#include "functions.h"
#include "lanes.h"
#include "memory.h"
#include "parallel.h"
#include "sampling.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

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
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % parts * kLanes<T>;
        run(i / parts, first, std::min<int64_t>(kLanes<T>, places - first));
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
  Vector<T> position = coordinate * scale + T(.5) * (size - 1), slope = broadcast(scale);
  Taps<T, count> taps;
  if constexpr (count < 4) bring_inside<T>(form, size, position, slope);
  const Vector<T> left = floored<T>(position), far = position - left;
  if constexpr (count == 1) {
    taps.place[0] = rounded<T>(position);
  } else if constexpr (count == 2) {
    taps.place[0] = left, taps.place[1] = left + T{1};
    taps.weight[0] = T{1} - far, taps.weight[1] = far;
    taps.slope[0] = -slope, taps.slope[1] = slope;
  } else {
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

// The indices and the weights of a grid's taps, as they are sampled by.
template <class T>
struct Terms {
  Memory<int32_t> index;
  Memory<T> weight;
  sampling::Problem<T> problem;

  Terms(Pool& pool, const Grid& grid, int64_t channels, const T* points, bool weighted)
      : index(memory<int32_t>(grid.batch * grid.entries())), weight(weighted ? memory<T>(grid.batch * grid.entries()) : nullptr) {
    int64_t count = 1;
    for (int64_t a = 0; a < grid.axes; ++a) count *= grid.sizes[a];
    const sampling::Terms<T> found{{nullptr, grid.taps(), 1, grid.apart()}, index.get(), weight.get(), std::numeric_limits<int32_t>::min()};
    problem = {grid.batch, channels, count, grid.places, grid.entries(), T{0}, found};
    grid.as_constants([&](auto taps, auto axes) { fill<taps, axes>(pool, grid, points); });
  }

  template <int taps, int axes>
  void fill(Pool& pool, const Grid& grid, const T* points) {
    grid.each<T>(pool, [&](int64_t n, int64_t first, int64_t places) {
      const Vectors<T, taps, axes> vectors(grid, points + (n * grid.places + first) * axes, places);
#pragma GCC unroll 16
      for (int t = 0; t < vectors.kTaps; ++t) {
        const int64_t at = n * grid.entries() + t * grid.apart() + first;
        store_narrow<T>(index.get() + at, vectors.index(t), places);
        if (weight) store_some(weight.get() + at, vectors.weight(t), places);
      }
    });
  }
};

// Whether weights matter: that of the nearest is 1.
bool weighted(const Form& form) { return form.taps > 1; }

ffi::Error sample(Pool pool, ffi::AnyBuffer x, ffi::AnyBuffer points, ffi::Result<ffi::AnyBuffer> y, int64_t taps, int64_t padding,
                  bool aligned) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Grid grid({taps, padding, aligned}, x.dimensions(), points.dimensions());
    const Terms<T> terms(pool, grid, x.dimensions()[1], data<T>(points), weighted(grid.form));
    sampling::gather_planes(pool, terms.problem, data<T>(x), data<T>(y));
  });
}

ffi::Error by_image(Pool pool, ffi::AnyBuffer g, ffi::AnyBuffer points, ffi::Result<ffi::AnyBuffer> x, int64_t taps, int64_t padding,
                    bool aligned) {
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Grid grid({taps, padding, aligned}, x->dimensions(), points.dimensions());
    const Terms<T> terms(pool, grid, g.dimensions()[1], data<T>(points), weighted(grid.form));
    sampling::scatter_planes(pool, terms.problem, data<T>(g), data<T>(x));
  });
}

template <int taps, int axes, class T>
void slopes_of_points(Pool& pool, const Grid& grid, const T* points, const T* by_weight, T* slopes) {
  grid.each<T>(pool, [&](int64_t n, int64_t first, int64_t places) {
    const int64_t begin = (n * grid.places + first) * axes;
    const Vectors<T, taps, axes> vectors(grid, points + begin, places);
    Vector<T> sums[axes] = {};
#pragma GCC unroll 16
    for (int t = 0; t < vectors.kTaps; ++t) {
      const Vector<T> slope = load_some(by_weight + n * grid.entries() + t * grid.apart() + first, places);
      for (int a = 0; a < axes; ++a) sums[a] += slope * vectors.slope(t, a);
    }
    for (int64_t i = 0; i < places; ++i)
      for (int a = 0; a < axes; ++a) slopes[begin + (i + 1) * axes - 1 - a] = sums[a][i];
  });
}

ffi::Error by_points(Pool pool, ffi::AnyBuffer g, ffi::AnyBuffer x, ffi::AnyBuffer points, ffi::Result<ffi::AnyBuffer> slopes, int64_t taps,
                     int64_t padding, bool aligned) {
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Grid grid({taps, padding, aligned}, x.dimensions(), points.dimensions());
    const Terms<T> terms(pool, grid, x.dimensions()[1], data<T>(points), false);
    const Memory<T> by_weight = zeros<T>(grid.batch * grid.entries());
    sampling::dots_planes(pool, terms.problem, data<T>(g), data<T>(x), by_weight.get());
    grid.as_constants(
        [&](auto count, auto axes) { slopes_of_points<count, axes>(pool, grid, data<T>(points), by_weight.get(), data<T>(slopes)); });
  });
}

template <class Binding>
auto formed(Binding binding) {
  return std::move(binding)
      .template Ret<ffi::AnyBuffer>()
      .template Attr<int64_t>("taps")
      .template Attr<int64_t>("padding")
      .template Attr<bool>("aligned");
}

auto bound() { return ffi::Ffi::Bind().Ctx<Pool>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_grid_sample, sample, formed(bound()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_grid_sample_by_image, by_image, formed(bound()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_grid_sample_by_points, by_points, formed(bound().Arg<ffi::AnyBuffer>()));

}  // namespace jnn
