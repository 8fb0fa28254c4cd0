// Convolutions, their gradients by the input and by the weight.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>

#include "buffers.h"
#include "columns.h"
#include "correlation.h"
#include "costs.h"
#include "depthwise.h"
#include "geometry.h"
#include "outputs.h"
#include "parallel.h"
#include "patches.h"
#include "places.h"
#include "slabs.h"
#include "weight_costs.h"
#include "winograd.h"
#include "winograd_weight.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

using Span = ffi::Span<const int64_t>;
using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

// What Winograd's transforms cost, as a factor of its products.
constexpr double kTransforms = 1.2;
// Of fewer tiles in all, of fewer in gradients, or of fewer where outputs are few, of which columns are faster, the transforms of the
// weights take longer than what is spared.
constexpr int64_t kLeastTiles = 10, kLeastTilesOfGradients = 16, kLeastTilesOfFew = 150, kFewOutputs = 32;
// From how many channels on they are worth it, and vectors by vectors of them. Those of gradients by the weight are read from the last
// cache: they take so many vectors of inputs and so many outputs.
constexpr int64_t kChannels = 16, kVectors = 3, kVectorsOfInputs = 4, kOutputsOfInputs = 24;

// What more places read is not put in rows: it would fill memory, and what that costs was fitted to no more.
constexpr int64_t kMostPlaces = 256;

// The form that is taken where it can be, or none; and whether Winograd's algorithm is barred.
struct Choice {
  std::string_view form;
  bool exact;

  bool allows(std::string_view name, bool chosen) const { return form.empty() ? chosen : form == name; }
};

// Whether Winograd's algorithm is taken where it computes this: it is worth it for `enough` channels and `least` tiles, and where its
// products, of 4 for an output and not 9, are fewer even with what tiles have beyond the edge.
bool by_winograd(const Choice& choice, const Channels& c, const Grid& grid, bool enough, int64_t least) {
  if (choice.exact || c.groups > 1 || !winograd::fits(grid)) return false;
  const int64_t tiles = (grid.places[1] + 1) / 2 * ((grid.places[2] + 1) / 2);
  enough = enough && c.batch * grid.places[0] * tiles >= least;
  const bool fewer = kTransforms * 16 * tiles < 9.0 * grid.places[1] * grid.places[2];
  return choice.allows("winograd", enough && fewer);
}

// Whether lanes are groups, of one channel each; columns are added up, where `spread` is of a convolution whose gradient by the input this
// is; what places read is put in rows, where it is `one` convolution with the weight as it stands; or lanes are outputs, of all grids.
template <class T>
struct Chosen {
  bool channels, columns, places, outputs;

  Chosen(const Channels& c, const std::vector<Grid>& grids, const Grid* spread, bool one) {
    const double none = std::numeric_limits<double>::infinity();
    double by_channel = c.in == 1 && c.groups > 1 ? 0 : none, own = Costs<T>(c, grids[0]).outputs_read(), others = 0;
    for (const Grid& grid : grids) {
      const Grid flat = grid.flattened();
      const Costs<T> costs(c, flat);
      if (by_channel < none) by_channel += costs.channels();
      own += Costs<T>(c, grid).outputs(), others += std::min(costs.slabs(), costs.patches());
    }
    const bool few = one && c.batch * product(grids[0].places) <= kMostPlaces;
    const double in_rows = few ? Costs<T>(c, grids[0]).places() : none, added = spread ? Costs<T>(c, *spread).columns() : none;
    outputs = own < others;
    channels = by_channel < std::min({own, others, in_rows, added});
    columns = added < std::min({own, others, in_rows});
    places = in_rows < std::min(own, others);
  }
};

// Outputs that read nothing but padding.
template <class T>
void fill(const Channels& c, const Ints& out, const T* bias, T* y) {
  const int64_t outputs = c.groups * c.out, size = product(out);
  for (int64_t i = 0; i < c.batch * outputs; ++i) std::fill_n(y + i * size, size, bias ? bias[i % outputs] : T{0});
}

// Outputs of one grid or, of a gradient by the input, of one for each phase of the stride; `whole` is then of the convolution itself. Each
// begins with its channel's number of the bias, where there is one.
template <class T>
void convolve(Pool& pool, const Choice& choice, Channels c, std::vector<Grid> grids, Grid* whole, const T* x, const T* w, const T* bias,
              T* y) {
  const auto used = used_alone(pool, c, grids, whole, w);
  if (used) w = used.get();
  if (std::all_of(grids.begin(), grids.end(), [](const Grid& grid) { return grid.taps.empty(); })) return fill(c, grids[0].out, bias, y);
  const bool enough = std::min(c.in, c.out) >= kChannels && c.in * c.out >= kVectors * kLanes<T> * kLanes<T>;
  const int64_t least = c.out < kFewOutputs ? kLeastTilesOfFew : whole ? kLeastTilesOfGradients : kLeastTiles;
  if (grids.size() == 1 && by_winograd(choice, c, grids[0], enough, least)) return winograd::convolve(pool, c, grids[0], x, w, bias, y);
  // In steps of one a convolution is the gradient of another.
  std::optional<Grid> other;
  if (!whole && c.kernel() > 1 && grids[0].in_step == Ints{1, 1, 1}) other = grids[0].reversed();
  // The gradient by the input of a kernel of 1 in steps of one is such a convolution itself, and its columns are what is asked for.
  const bool one = !whole || (c.kernel() == 1 && grids.size() == 1);
  const Grid* spread = other ? &*other : one ? nullptr : whole;
  const Chosen<T> chosen(c, grids, spread, one);
  if (c.in == 1 && choice.allows("channels", chosen.channels)) return depthwise::convolve(pool, c, grids, x, w, bias, y);
  if (spread && choice.allows("columns", chosen.columns)) return columns::convolve(pool, c, *spread, x, w, bias, y);
  if (one && choice.allows("places", chosen.places)) return places::convolve(pool, c, grids[0], x, w, bias, y);
  if (choice.allows("outputs", chosen.outputs)) return outputs::convolve(pool, c, grids, x, w, bias, y);
  for (const Grid& own : grids) {
    const Grid grid = own.flattened();
    const Costs<T> costs(c, grid);
    choice.allows("slabs", costs.slabs() <= costs.patches()) ? slabs::convolve(pool, c, grid, x, w, bias, y)
                                                             : patches::convolve(pool, c, grid, x, w, bias, y);
  }
}

template <class T>
void correlate(Pool& pool, const Choice& choice, const Channels& c, const Grid& own, const T* g, const T* x, T* w) {
  const bool enough = c.in >= kVectorsOfInputs * kLanes<T> && c.out >= kOutputsOfInputs;
  if (own.taps.size() == 9 && by_winograd(choice, c, own, enough, kLeastTilesOfGradients))
    return winograd::correlate(pool, c, own, g, x, w);
  const Grid grid = own.flattened();
  const WeightCosts<T> costs(c, own), flat(c, grid);
  const bool few = c.batch * product(grid.places) <= kMostPlaces;
  const double by_channel = costs.channels(), by_place = few ? costs.places() : std::numeric_limits<double>::infinity();
  const double by_slab = flat.slabs(), others = flat.correlation();
  if (c.in == 1 && choice.allows("channels", by_channel < std::min({by_place, by_slab, others})))
    return depthwise::correlate(pool, c, own, g, x, w);
  if (choice.allows("places", by_place < std::min(by_slab, others))) return places::correlate(pool, c, own, g, x, w);
  choice.allows("slabs", by_slab < others) ? slabs::correlate(pool, c, grid, g, x, w) : correlation::correlate(pool, c, grid, g, x, w);
}

// The last entries of three dimensions; others are `missing`.
Ints three(Span given, int64_t missing) {
  Ints out{missing, missing, missing};
  std::copy(given.begin(), given.end(), out.end() - given.size());
  return out;
}

Ints spatial(In::Dimensions sizes) { return three(sizes.last(sizes.size() - 2), 1); }

Geometry geometry_of(Span stride, Span padding, Span dilation, In::Dimensions w) {
  return {three(stride, 1), three(padding, 0), three(dilation, 1), spatial(w)};
}

ffi::Error forward(Pool pool, Span stride, Span padding, Span dilation, int64_t groups, bool exact, std::string_view form, In x, In w,
                   ffi::RemainingArgs bias, Out y) {
  const Geometry geometry = geometry_of(stride, padding, dilation, w.dimensions());
  const int64_t in = w.dimensions()[1], out = w.dimensions()[0] / groups, kernel = product(geometry.kernel);
  const Channels channels{x.dimensions()[0], groups, in, out, kernel, in * kernel, out * in * kernel};
  const Grid grid = geometry.forward(spatial(x.dimensions()), spatial(y->dimensions()));
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    convolve<T>(pool, {form, exact}, channels, {grid}, nullptr, data<T>(x), data<T>(w), given<T>(bias), data<T>(y));
  });
}

ffi::Error by_input(Pool pool, Span stride, Span padding, Span dilation, int64_t groups, bool exact, std::string_view form, In g, In w,
                    ffi::RemainingArgs bias, Out x) {
  const Geometry geometry = geometry_of(stride, padding, dilation, w.dimensions());
  const int64_t out = w.dimensions()[1], in = w.dimensions()[0] / groups, kernel = product(geometry.kernel);
  const Channels channels{g.dimensions()[0], groups, in, out, out * kernel, kernel, out * in * kernel};
  const Ints from = spatial(g.dimensions()), to = spatial(x->dimensions()), s = geometry.stride;
  Grid whole = geometry.forward(to, from);
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    std::vector<Grid> grids;
    for (int64_t phase = 0; phase < product(s); ++phase) {
      grids.push_back(geometry.backward(from, to, {phase / (s[1] * s[2]), phase / s[2] % s[1], phase % s[2]}));
      if (product(grids.back().places) == 0) grids.pop_back();
    }
    convolve(pool, {form, exact}, channels, grids, &whole, data<T>(g), data<T>(w), given<T>(bias), data<T>(x));
  });
}

ffi::Error by_weight(Pool pool, Span stride, Span padding, Span dilation, int64_t groups, bool exact, std::string_view form, In g, In x,
                     Out w) {
  const Geometry geometry = geometry_of(stride, padding, dilation, w->dimensions());
  const Channels channels{x.dimensions()[0], groups, w->dimensions()[1], w->dimensions()[0] / groups, 0, 0, 0};
  const Grid grid = geometry.forward(spatial(x.dimensions()), spatial(g.dimensions()));
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    correlate(pool, {form, exact}, channels, grid, data<T>(g), data<T>(x), data<T>(w));
  });
}

auto bound() {
  return ffi::Ffi::Bind()
      .Ctx<Pool>()
      .Attr<Span>("stride")
      .Attr<Span>("padding")
      .Attr<Span>("dilation")
      .Attr<int64_t>("groups")
      .Attr<bool>("exact")
      .Attr<std::string_view>("form")
      .Arg<In>()
      .Arg<In>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_conv, forward, bound().RemainingArgs().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_conv_by_input, by_input, bound().RemainingArgs().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_conv_by_weight, by_weight, bound().Ret<In>());

}  // namespace jnn
