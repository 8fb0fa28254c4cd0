// Convolutions, their gradients by the input and by the weight, as products of matrices whose patches are cut out tile by tile.

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "parallel.h"
#include "products.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

using Ints = std::array<int64_t, 3>;
using Span = ffi::Span<const int64_t>;

// So many terms of a sum are taken at a time, and so many tiles side by side: patches of them stay in the cache.
constexpr int64_t kDepth = 192, kTilesAtOnce = 4;
// Rows of a product that a task makes at most.
constexpr int64_t kRowsAtOnce = 256;
// Places whose products a gradient by the weight sums up at a time, and columns of it that a task makes.
constexpr int64_t kPlacesAtOnce = 1024, kColumnsAtOnce = 40;
// For balance there are so many tasks for each thread.
constexpr int64_t kTasksAThread = 4;

int64_t product(const Ints& sizes) { return sizes[0] * sizes[1] * sizes[2]; }

// The last entries of three dimensions; others are `missing`.
Ints three(Span given, int64_t missing) {
  Ints out{missing, missing, missing};
  for (size_t i = 0; i < given.size(); ++i) out[3 - given.size() + i] = given[i];
  return out;
}

// One offset of the kernel: which of its elements, and where it reads from.
struct Tap {
  Ints offset;
  int64_t index;
};

// out[first + place * out_step] is a sum over taps of what stands at in[place * in_step + offset].
struct Grid {
  Ints places, in, out, in_step, out_step, first;
  std::vector<Tap> taps;

  // A kernel of 1 in steps of 1 knows no rows.
  void flatten() {
    const Ints one{1, 1, 1}, none{0, 0, 0};
    if (taps.size() != 1 || taps[0].offset != none || in_step != one || out_step != one || places != in || places != out) return;
    places = in = out = Ints{1, 1, product(in)};
  }
};

// Neighbours along a row, no more than lanes: `count` places from (image, place) on. They are the `at`-th of their block, and go to `slot`.
struct Run {
  int64_t image;
  Ints place;
  int count;
  int64_t at, slot;
};

// Where a run reads for one tap, less the channel, and which of its lanes stand inside the input.
struct Read {
  int64_t from;
  Mask mask;
};

// What a block of places reads and writes. Places are counted through all images.
template <class T>
class Block {
 public:
  // Places have their slots in parts of `width`, `pitch` apart; the last part is filled up.
  Block(const Grid& grid, int64_t in_channels, int64_t begin, int64_t end, int64_t width, int64_t pitch) : grid_(grid) {
    const int64_t an_image = product(grid.places), columns = grid.places[2];
    for (int64_t at = begin; at < end;) {
      const int64_t rest = at % an_image, x = rest % columns, row = rest / columns, within = (at - begin) % width;
      const int64_t count = std::min({columns - x, end - at, width - within, int64_t{kLanes<T>}});
      const int64_t slot = (at - begin) / width * pitch + within;
      runs_.push_back({at / an_image, {row / grid.places[1], row % grid.places[1], x}, static_cast<int>(count), at - begin, slot});
      at += count;
    }
    reads_.reserve(runs_.size() * grid.taps.size());
    for (const Tap& tap : grid.taps)
      for (const Run& run : runs_) reads_.push_back(read(run, tap, in_channels));
    const int64_t filled = (end - begin) % width;
    for (int64_t at = filled; filled && at < width; at += kLanes<T>) gaps_.push_back((end - begin) / width * pitch + at);
  }

  // What the places read of the channel that begins at `channel`, into their slots. Up to a vector behind a part is written too.
  void copy(const T* channel, int64_t tap, T* to) const {
    const Read* read = reads_.data() + tap * runs_.size();
    const int64_t step = grid_.in_step[2];
    for (const Run& run : runs_) {
      store(to + run.slot, load_masked(channel + read->from, read->mask, step));
      ++read;
    }
    for (int64_t slot : gaps_) store(to + slot, Vector<T>{});
  }

  // The places' values, one by one, into the channel of the output that begins at `channel`.
  void write(const T* from, T* channel, int64_t out_channels) const {
    for (const Run& run : runs_) {
      int64_t to = run.image * out_channels;
      for (int d = 0; d < 3; ++d) to = to * grid_.out[d] + grid_.first[d] + run.place[d] * grid_.out_step[d];
      store_masked(channel + to, load(from + run.at), between(0, run.count), grid_.out_step[2]);
    }
  }

 private:
  Read read(const Run& run, const Tap& tap, int64_t in_channels) const {
    int64_t from = run.image * in_channels;
    bool inside = true;
    for (int d = 0; d < 3; ++d) {
      const int64_t at = run.place[d] * grid_.in_step[d] + tap.offset[d];
      inside = inside && (d == 2 || (at >= 0 && at < grid_.in[d]));
      from = from * grid_.in[d] + at;
    }
    const int64_t step = grid_.in_step[2], x = run.place[2] * step + tap.offset[2];
    const int64_t first = x < 0 ? (-x + step - 1) / step : 0, end = x < grid_.in[2] ? (grid_.in[2] - 1 - x) / step + 1 : 0;
    const int64_t count = run.count;
    return {from, inside ? between(std::min(first, count), std::min(end, count)) : 0};
  }

  const Grid& grid_;
  std::vector<Run> runs_;
  std::vector<Read> reads_;
  std::vector<int64_t> gaps_;
};

template <class T>
using Buffer = std::unique_ptr<T[]>;

template <class T>
Buffer<T> buffer(int64_t size) {
  return Buffer<T>(new T[size]);
}

// Channels of a group, and by how much an element of the weight is apart from the next by input, output channel and group.
struct Channels {
  int64_t batch, groups, in, out, in_stride, out_stride, group_stride;
};

// The weights in the order in which tiles read them: by group, by up to kMostRows outputs, by input channel and tap.
template <class T>
Buffer<T> ordered(ffi::ThreadPool& pool, const Channels& c, const Grid& grid, const T* w, const Parts& rows) {
  const int64_t depth = c.in * grid.taps.size();
  Buffer<T> to = buffer<T>(c.groups * c.out * depth);
  parallel(pool, c.groups * rows.parts, [&](int64_t task) {
    const int64_t group = task / rows.parts, begin = rows.begin(task % rows.parts), size = rows.size(task % rows.parts);
    const T* from = w + group * c.group_stride + begin * c.out_stride;
    T* out = to.get() + (group * c.out + begin) * depth;
    for (int64_t channel = 0; channel < c.in; ++channel)
      for (const Tap& tap : grid.taps)
        for (int64_t i = 0; i < size; ++i) *out++ = from[channel * c.in_stride + i * c.out_stride + tap.index];
  });
  return to;
}

template <class T>
void convolve(ffi::ThreadPool& pool, const Channels& c, Grid grid, const T* x, const T* w, T* y) {
  grid.flatten();
  const int64_t taps = grid.taps.size(), depth = c.in * taps, places = c.batch * product(grid.places);
  const int64_t in_size = product(grid.in), out_size = product(grid.out), width = kTileColumns<T>;
  const Parts rows(c.out, kMostRows);
  const Buffer<T> weights = ordered(pool, c, grid, w, rows);
  // A task is a block of places and some units, a unit some rows of a group.
  const int64_t wanted = kTasksAThread * pool.num_threads(), most_tiles = (places + width - 1) / width;
  const int64_t block_size = std::clamp(most_tiles / wanted, int64_t{1}, kTilesAtOnce) * width, blocks = (places + block_size - 1) / block_size;
  const Parts unit_rows(rows.parts, std::clamp(rows.parts * c.groups * blocks / wanted, int64_t{1}, kRowsAtOnce / kMostRows));
  const int64_t units = c.groups * unit_rows.parts;
  const Parts unit_tasks(units, std::max<int64_t>(1, units * blocks / wanted));
  const int64_t pitch = std::min(depth, kDepth) * width + kLanes<T>, most_rows = std::min(c.out, (rows.parts / unit_rows.parts + 1) * kMostRows);
  parallel(pool, blocks * unit_tasks.parts, [&](int64_t task) {
    const int64_t begin = task / unit_tasks.parts * block_size, end = std::min(begin + block_size, places), part = task % unit_tasks.parts;
    const int64_t tiles = (end - begin + width - 1) / width;
    const Block<T> block(grid, c.groups * c.in, begin, end, width, pitch);
    const Buffer<T> patches = buffer<T>(tiles * pitch), sums = buffer<T>(most_rows * block_size);
    for (int64_t unit = unit_tasks.begin(part); unit < unit_tasks.begin(part + 1); ++unit) {
      const int64_t group = unit / unit_rows.parts, first = unit_rows.begin(unit % unit_rows.parts);
      const int64_t last = first + unit_rows.size(unit % unit_rows.parts), row = rows.begin(first);
      const T* input = x + group * c.in * in_size;
      const T* factors = weights.get() + group * c.out * depth;
      for (int64_t k = 0; k == 0 || k < depth; k += kDepth) {
        const int64_t terms = std::min(kDepth, depth - k);
        for (int64_t i = 0; i < terms; ++i) block.copy(input + (k + i) / taps * in_size, (k + i) % taps, patches.get() + i * width);
        for (int64_t r = first; r < last; ++r) {
          const int64_t o = rows.begin(r), count = rows.size(r);
          T* to = sums.get() + (o - row) * block_size;
          for (int64_t t = 0; t < tiles; ++t)
            kTiles<T>[count - 1](terms, factors + o * depth + k * count, patches.get() + t * pitch, to + t * width, block_size, k > 0);
        }
      }
      for (int64_t o = row; o < rows.begin(last); ++o)
        block.write(sums.get() + (o - row) * block_size, y + (group * c.out + o) * out_size, c.groups * c.out);
    }
  });
}

// The gradient by the weight: g (N, O, *places) and x (N, C, *in) give w (O, C / groups, *K).
template <class T>
void correlate(ffi::ThreadPool& pool, const Channels& c, Grid grid, const T* g, const T* x, T* w) {
  grid.flatten();
  const int64_t taps = grid.taps.size(), columns = c.in * taps, an_image = product(grid.places), places = c.batch * an_image;
  const int64_t in_size = product(grid.in), lanes = kLanes<T>;
  std::fill(w, w + c.groups * c.out * columns, T{0});
  if (!places) return;
  // Chunks of places lie within one image, unless images are small; where they are no whole vectors, g is copied into ones that are.
  const bool whole = an_image % lanes == 0;
  const Parts per_image(an_image / lanes, kPlacesAtOnce / lanes);
  const int64_t chunk_size = whole ? 0 : std::min(places, kPlacesAtOnce);
  const int64_t chunks = whole ? c.batch * per_image.parts : (places + chunk_size - 1) / chunk_size;
  const int64_t most = whole ? (an_image / lanes + per_image.parts - 1) / per_image.parts * lanes : (chunk_size + lanes - 1) / lanes * lanes;
  auto begin_of = [&](int64_t chunk) {
    return whole ? chunk / per_image.parts * an_image + per_image.begin(chunk % per_image.parts) * lanes : std::min(chunk * chunk_size, places);
  };
  const int64_t outputs = c.groups * c.out;
  Buffer<T> copied;
  if (!whole) {
    copied = buffer<T>(chunks * outputs * most);
    parallel(pool, chunks, [&](int64_t chunk) {
      const int64_t begin = begin_of(chunk), end = begin_of(chunk + 1);
      for (int64_t o = 0; o < outputs; ++o) {
        T* to = copied.get() + (chunk * outputs + o) * most;
        for (int64_t at = begin; at < end;) {
          const int64_t image = at / an_image, count = std::min(end, (image + 1) * an_image) - at;
          to = std::copy_n(g + (image * outputs + o) * an_image + at % an_image, count, to);
          at += count;
        }
        std::fill(to, copied.get() + (chunk * outputs + o + 1) * most, T{0});
      }
    });
  }
  const int64_t wanted = kTasksAThread * pool.num_threads();
  const Parts parts(columns, std::clamp((columns * c.groups + wanted - 1) / wanted, int64_t{1}, kColumnsAtOnce));
  parallel(pool, c.groups * parts.parts, [&](int64_t task) {
    const int64_t group = task / parts.parts, first = parts.begin(task % parts.parts);
    const Parts tiles(parts.size(task % parts.parts), kMostDots), rows(c.out, kMostDots);
    const Buffer<T> patches = buffer<T>(kMostDots * most + lanes);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t begin = begin_of(chunk), end = whole ? begin + per_image.size(chunk % per_image.parts) * lanes : begin_of(chunk + 1);
      const int64_t length = (end - begin + lanes - 1) / lanes * lanes;
      const Block<T> block(grid, c.groups * c.in, begin, end, length, length);
      const int64_t pitch = whole ? an_image : most;
      const T* slopes = whole ? g + (begin / an_image * outputs + group * c.out) * an_image + begin % an_image
                              : copied.get() + (chunk * outputs + group * c.out) * most;
      for (int64_t t = 0; t < tiles.parts; ++t) {
        const int64_t column = first + tiles.begin(t), count = tiles.size(t);
        for (int64_t j = 0; j < count; ++j)
          block.copy(x + (group * c.in + (column + j) / taps) * in_size, (column + j) % taps, patches.get() + j * length);
        for (int64_t r = 0; r < rows.parts; ++r)
          kDots<T>[(rows.size(r) - 1) * kMostDots + count - 1](length, slopes + rows.begin(r) * pitch, pitch, patches.get(), length,
                                                              w + (group * c.out + rows.begin(r)) * columns + column, columns);
      }
    }
  });
}

// What of a convolution is no array, in three dimensions.
struct Geometry {
  Ints stride, padding, dilation, kernel;

  // All taps of the kernel, whose offsets `offset` gives by dimension, where it gives any.
  template <class Offset>
  std::vector<Tap> taps(const Offset& offset) const {
    std::vector<Tap> found;
    for (int64_t index = 0; index < product(kernel); ++index) {
      const Ints at{index / (kernel[1] * kernel[2]), index / kernel[2] % kernel[1], index % kernel[2]};
      Tap tap{{0, 0, 0}, index};
      bool reached = true;
      for (int d = 0; d < 3; ++d) reached = offset(d, at[d], &tap.offset[d]) && reached;
      if (reached) found.push_back(tap);
    }
    return found;
  }

  Grid forward(const Ints& in, const Ints& out) const {
    auto offset = [&](int d, int64_t k, int64_t* at) { return *at = k * dilation[d] - padding[d], true; };
    return {out, in, out, stride, {1, 1, 1}, {0, 0, 0}, taps(offset)};
  }

  // Of the input's gradient, the places that are `first` more than a multiple of the stride.
  Grid backward(const Ints& gradient, const Ints& in, const Ints& first) const {
    auto offset = [&](int d, int64_t k, int64_t* at) {
      const int64_t from = first[d] + padding[d] - k * dilation[d];
      return *at = from / stride[d], from % stride[d] == 0;
    };
    Ints places;
    for (int d = 0; d < 3; ++d) places[d] = (in[d] - first[d] + stride[d] - 1) / stride[d];
    return {places, gradient, in, {1, 1, 1}, stride, first, taps(offset)};
  }
};

template <class T>
struct Of {
  static T* data(ffi::Result<ffi::AnyBuffer>& buffer) { return reinterpret_cast<T*>(buffer->untyped_data()); }
  static const T* data(const ffi::AnyBuffer& buffer) { return reinterpret_cast<const T*>(buffer.untyped_data()); }
};

Ints spatial(ffi::AnyBuffer::Dimensions sizes) { return three(sizes.last(sizes.size() - 2), 1); }

template <class Run>
ffi::Error by_type(ffi::DataType type, const Run& run) {
  if (type == ffi::F32) return run(float{}), ffi::Error::Success();
  if (type == ffi::F64) return run(double{}), ffi::Error::Success();
  return ffi::Error::InvalidArgument("jnn: neither float32 nor float64");
}

ffi::Error forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::Result<ffi::AnyBuffer> y, Span stride, Span padding,
                   Span dilation, int64_t groups) {
  const Geometry geometry{three(stride, 1), three(padding, 0), three(dilation, 1), spatial(w.dimensions())};
  const int64_t in = w.dimensions()[1], out = w.dimensions()[0] / groups, kernel = product(geometry.kernel);
  const Channels channels{x.dimensions()[0], groups, in, out, kernel, in * kernel, out * in * kernel};
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    convolve(pool, channels, geometry.forward(spatial(x.dimensions()), spatial(y->dimensions())), Of<T>::data(x), Of<T>::data(w), Of<T>::data(y));
  });
}

ffi::Error by_input(ffi::ThreadPool pool, ffi::AnyBuffer g, ffi::AnyBuffer w, ffi::Result<ffi::AnyBuffer> x, Span stride, Span padding,
                    Span dilation, int64_t groups) {
  const Geometry geometry{three(stride, 1), three(padding, 0), three(dilation, 1), spatial(w.dimensions())};
  const int64_t out = w.dimensions()[1], in = w.dimensions()[0] / groups, kernel = product(geometry.kernel);
  const Channels channels{g.dimensions()[0], groups, in, out, out * kernel, kernel, out * in * kernel};
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Ints sizes = spatial(x->dimensions());
    for (int64_t phase = 0; phase < product(geometry.stride); ++phase) {
      const Ints s = geometry.stride, first{phase / (s[1] * s[2]), phase / s[2] % s[1], phase % s[2]};
      const Grid grid = geometry.backward(spatial(g.dimensions()), sizes, first);
      if (product(grid.places) > 0) convolve(pool, channels, grid, Of<T>::data(g), Of<T>::data(w), Of<T>::data(x));
    }
  });
}

ffi::Error by_weight(ffi::ThreadPool pool, ffi::AnyBuffer g, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> w, Span stride, Span padding,
                     Span dilation, int64_t groups) {
  const Geometry geometry{three(stride, 1), three(padding, 0), three(dilation, 1), spatial(w->dimensions())};
  const Channels channels{x.dimensions()[0], groups, w->dimensions()[1], w->dimensions()[0] / groups, 0, 0, 0};
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    correlate(pool, channels, geometry.forward(spatial(x.dimensions()), spatial(g.dimensions())), Of<T>::data(g), Of<T>::data(x), Of<T>::data(w));
  });
}

auto bound() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()
      .Attr<Span>("stride")
      .Attr<Span>("padding")
      .Attr<Span>("dilation")
      .Attr<int64_t>("groups");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_conv, forward, bound());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_conv_by_input, by_input, bound());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_conv_by_weight, by_weight, bound());

}  // namespace jnn
