// Samples of images and volumes at the points of grids, and their gradients by the images and by the points.

#include "grid.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "buffers.h"
#include "grid_blocks.h"
#include "lanes.h"
#include "memory.h"
#include "parallel.h"
#include "sampling.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

// Planes are sampled as they stand where they are few, or few points of each: of more, channels side by side are faster.
bool by_block(const Grid& grid, int64_t channels) {
  return channels <= (grid.form.taps == 1 ? 32 : 8) || 4 * grid.entries() < grid.count();
}

// The indices and the weights of a grid's taps, as they are sampled by.
template <class T>
struct Terms {
  Memory<int32_t> index;
  Memory<T> weight;
  sampling::Problem<T> problem;

  Terms(Pool& pool, const Grid& grid, int64_t channels, const T* points, bool weighted)
      : index(memory<int32_t>(grid.batch * grid.entries())), weight(weighted ? memory<T>(grid.batch * grid.entries()) : nullptr) {
    const sampling::Terms<T> found{{nullptr, grid.taps(), 1, grid.apart()}, index.get(), weight.get(), std::numeric_limits<int32_t>::min()};
    problem = {grid.batch, channels, grid.count(), grid.places, grid.entries(), T{0}, found};
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
    const int64_t channels = x.dimensions()[1];
    if (by_block(grid, channels)) {
      return grid.as_constants(
          [&](auto count, auto axes) { sample_by_block<count, axes>(pool, grid, channels, data<T>(x), data<T>(points), data<T>(y)); });
    }
    const Terms<T> terms(pool, grid, channels, data<T>(points), weighted(grid.form));
    sampling::gather_planes(pool, terms.problem, data<T>(x), data<T>(y));
  });
}

ffi::Error by_image(Pool pool, ffi::AnyBuffer g, ffi::AnyBuffer points, ffi::Result<ffi::AnyBuffer> x, int64_t taps, int64_t padding,
                    bool aligned) {
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Grid grid({taps, padding, aligned}, x->dimensions(), points.dimensions());
    const int64_t channels = g.dimensions()[1];
    if (by_block(grid, channels)) {
      return grid.as_constants(
          [&](auto count, auto axes) { slopes_by_image<count, axes>(pool, grid, channels, data<T>(g), data<T>(points), data<T>(x)); });
    }
    const Terms<T> terms(pool, grid, channels, data<T>(points), weighted(grid.form));
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
    vectors.store_points(sums, places, slopes + begin);
  });
}

ffi::Error by_points(Pool pool, ffi::AnyBuffer g, ffi::AnyBuffer x, ffi::AnyBuffer points, ffi::Result<ffi::AnyBuffer> slopes, int64_t taps,
                     int64_t padding, bool aligned) {
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Grid grid({taps, padding, aligned}, x.dimensions(), points.dimensions());
    const int64_t channels = x.dimensions()[1];
    if (by_block(grid, channels)) {
      return grid.as_constants([&](auto count, auto axes) {
        slopes_by_points<count, axes>(pool, grid, channels, data<T>(g), data<T>(x), data<T>(points), data<T>(slopes));
      });
    }
    const Terms<T> terms(pool, grid, channels, data<T>(points), false);
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
