// Convolutions as products with patches, which are cut out tile by tile: for many channels of output, and for small images.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "tasks.h"
#include "transpose.h"
#include "vector.h"
#include "weights.h"

namespace jnn::patches {

// So many terms of a sum are taken at a time, and so many tiles side by side: patches of them stay in the cache.
constexpr int64_t kDepth = 192, kTilesAtOnce = 4;
// Kernels of so many taps, and those of one channel, leave out the taps that read nothing but padding, channel by channel.
constexpr int64_t kManyTaps = 64;
inline bool leaves_out(const Channels& c, int64_t taps) { return taps > 0 && (c.in == 1 || taps >= kManyTaps); }
// Rows of a product that a task makes at most.
constexpr int64_t kRowsAtOnce = 256;

// Neighbours along a row, no more than lanes: `count` places from (image, place) on, which read from `base` and `from` on, less a tap's
// offset. They are the `at`-th of their block, and go to `slot`.
struct Run {
  int64_t image;
  Ints place;
  int count;
  int64_t at, slot, base;
  Ints from;
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
  // Places have their slots in parts of `width`, `pitch` apart; the last part is filled up. Not `past` the cache, parts whose outputs
  // follow each other need not be written: they are computed where they belong.
  Block(const Grid& grid, int64_t in_channels, int64_t begin, int64_t end, int64_t width, int64_t pitch, bool past)
      : grid_(grid), own_((end - begin + width - 1) / width, Own{kNone, 0}) {
    const auto [depths, rows, columns] = grid.places;
    const int64_t an_image = product(grid.places), row = begin % an_image / columns;
    Ints place{row / rows, row % rows, begin % columns};
    // Counted on, for a division takes as long as several runs are copied.
    for (int64_t at = begin, image = begin / an_image, within = 0, part = 0; at < end;) {
      const int64_t count = std::min({columns - place[2], end - at, width - within, int64_t{kLanes<T>}});
      const Ints from{place[0] * grid.in_step[0], place[1] * grid.in_step[1], place[2] * grid.in_step[2]};
      const int64_t base = flat(image * in_channels, from[0], from[1], from[2]);
      runs_.push_back({image, place, static_cast<int>(count), at - begin, part + within, base, from});
      at += count;
      if ((within += count) == width) within = 0, part += pitch;
      if ((place[2] += count) < columns) continue;
      place[2] = 0;
      if (++place[1] < rows) continue;
      place[1] = 0;
      if (++place[0] == depths) place[0] = 0, ++image;
    }
    if (grid.whole()) write_along(begin, end, width, past);
    else writes_ = runs_;
    // Numbers are written one by one: a pair put together in memory and read as a whole would have to wait for it.
    reads_.resize(runs_.size() * grid.taps.size());
    Read* next = reads_.data();
    for (const Tap& tap : grid.taps) {
      const int64_t shift = flat(0, tap.offset[0], tap.offset[1], tap.offset[2]);
      const bool everywhere = grid.everywhere(tap);
      for (const Run& run : runs_) {
        next->from = run.base + shift;
        next->mask = everywhere ? between(0, run.count) : inside(run, tap);
        ++next;
      }
    }
    const int64_t filled = (end - begin) % width;
    for (int64_t at = filled; filled && at < width; at += kLanes<T>) gaps_.push_back((end - begin) / width * pitch + at);
  }

  // For each part of the slots, from the first to the last tap that is inside the input for any of its places.
  std::vector<Range> used(int64_t pitch) const {
    const int64_t taps = grid_.taps.size(), count = runs_.size();
    std::vector<Range> found;
    for (int64_t first = 0, last = 0; first < count; first = last) {
      while (last < count && runs_[last].slot / pitch == runs_[first].slot / pitch) ++last;
      found.push_back(spanned(taps, [&](int64_t tap) {
        const Read* own = reads_.data() + tap * count;
        return std::any_of(own + first, own + last, [](const Read& read) { return read.mask != 0; });
      }));
    }
    return found;
  }

  // What the places read of the channel that begins at `channel`, for taps from one on, each `pitch` behind the other, into their slots. Up
  // to a vector behind the last part is written too.
  void copy(const T* channel, int64_t tap, int64_t taps, T* to, int64_t pitch) const {
    const Read* read = reads_.data() + tap * runs_.size();
    if (taps > 1) return copy_together(channel, read, taps, to, pitch);
    const int64_t step = grid_.in_step[2];
    for (const Run& run : runs_) {
      store(to + run.slot, load_masked(channel + read->from, read->mask, step));
      ++read;
    }
    for (int64_t slot : gaps_) store(to + slot, Vector<T>{});
  }

  // The same for terms of the sums over the channels from `input` on and their taps, of which those that are not `read` are left out. So
  // many taps from each on are copied `at_once`.
  void fill(const T* input, const Range& terms, const Range& read, const std::vector<int64_t>& at_once, T* to, int64_t pitch) const {
    const int64_t taps = grid_.taps.size(), in_size = product(grid_.in);
    for (int64_t k = terms.begin, count; k < terms.end; k += count, to += count * pitch) {
      const int64_t channel = k / taps, tap = k % taps;
      count = read.has(tap) ? std::min(at_once[tap], terms.end - k) : 1;
      if (read.has(tap)) copy(input + channel * in_size, tap, count, to, pitch);
    }
  }

  // Where a part's values are computed in the channel of the output that begins at `channel`, or nothing.
  T* own(int64_t part, T* channel, int64_t out_channels) const {
    const auto [image, place] = own_[part];
    return image == kNone ? nullptr : channel + image * out_channels * product(grid_.out) + place;
  }

  // Other places' values, one by one, into the channel of the output that begins at `channel`; `past` the cache where they can be.
  void write(const T* from, T* channel, int64_t out_channels, bool past) const {
    const int64_t step = grid_.out_step[2];
    for (const Run& run : writes_) {
      int64_t to = run.image * out_channels;
      for (int d = 0; d < 3; ++d) to = to * grid_.out[d] + grid_.first[d] + run.place[d] * grid_.out_step[d];
      if (past && step == 1 && run.count == kLanes<T>) stream(channel + to, load(from + run.at));
      else store_masked(channel + to, load(from + run.at), between(0, run.count), step);
    }
  }

 private:
  static constexpr int64_t kNone = -1;
  struct Own {
    int64_t image, place;
  };

  // Rows of outputs that follow each other are one.
  void write_along(int64_t begin, int64_t end, int64_t width, bool past) {
    const int64_t an_image = product(grid_.places);
    int64_t image = begin / an_image, rest = begin % an_image, part = 0, within = 0;
    for (int64_t at = begin, count; at < end; at += count) {
      const bool whole = !past && within == 0 && width <= std::min(end - at, an_image - rest);
      count = whole ? width : std::min({an_image - rest, end - at, width - within, int64_t{kLanes<T>}});
      if (whole) own_[part] = {image, rest};
      else writes_.push_back({image, {0, 0, rest}, static_cast<int>(count), at - begin, 0, 0, {}});
      if ((within += count) == width) within = 0, ++part;
      if ((rest += count) == an_image) rest = 0, ++image;
    }
  }

  void copy_together(const T* channel, const Read* first, int64_t taps, T* to, int64_t pitch) const {
    // What gaps write behind a part is overwritten.
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t slot : gaps_) store(to + t * pitch + slot, Vector<T>{});
    const int64_t step = grid_.in_step[2], count = runs_.size();
    for (const Run& run : runs_) {
      const Mask all = between(0, run.count);
      const bool inside = first->mask == all && first[(taps - 1) * count].mask == all;
      if (inside) transpose(channel + first->from, step, run.count, taps, to + run.slot, pitch);
      for (int64_t t = 0; t < taps && !inside; ++t) {
        const Read& read = first[t * count];
        store_masked(to + t * pitch + run.slot, load_masked(channel + read.from, read.mask, step), all, 1);
      }
      ++first;
    }
  }

  int64_t flat(int64_t plane, int64_t z, int64_t y, int64_t x) const {
    return ((plane * grid_.in[0] + z) * grid_.in[1] + y) * grid_.in[2] + x;
  }

  // The lanes of a run that a tap reads inside the input.
  Mask inside(const Run& run, const Tap& tap) const {
    for (int d = 0; d < 2; ++d) {
      const int64_t at = run.from[d] + tap.offset[d];
      if (at < 0 || at >= grid_.in[d]) return 0;
    }
    const int64_t step = grid_.in_step[2], x = run.from[2] + tap.offset[2], count = run.count;
    if (x >= 0 && x + (count - 1) * step < grid_.in[2]) return between(0, run.count);
    // Of steps of one, which need no division.
    if (step == 1) return between(std::clamp<int64_t>(-x, 0, count), std::clamp<int64_t>(grid_.in[2] - x, 0, count));
    const int64_t first = x < 0 ? (-x + step - 1) / step : 0, end = x < grid_.in[2] ? (grid_.in[2] - 1 - x) / step + 1 : 0;
    return between(std::min(first, count), std::min(end, count));
  }

  const Grid& grid_;
  std::vector<Run> runs_, writes_;
  std::vector<Read> reads_;
  std::vector<Own> own_;
  std::vector<int64_t> gaps_;
};

// How many taps from each on are copied at a time: neighbours, where few of those that a vector has in reach are of one tap.
template <class T>
std::vector<int64_t> together(const Grid& grid) {
  std::vector<int64_t> found = grid.neighbours();
  for (int64_t& count : found) {
    count = std::min<int64_t>(kLanes<T>, count);
    if (count <= kFew || !grid.far()) count = 1;
  }
  return found;
}

template <class T>
void convolve(Pool& pool, const Channels& c, const Grid& grid, const T* x, const T* w, const T* bias, T* y) {
  const int64_t taps = grid.taps.size(), depth = c.in * taps, places = c.batch * product(grid.places);
  const int64_t in_size = product(grid.in), out_size = product(grid.out), width = kTileColumns<T>;
  const Parts rows(c.out, kMostRows);
  const auto weights = ordered(pool, c, grid, w, rows);
  // A task is a block of places and some units, a unit some rows of a group.
  const int64_t wanted = kTasksAThread * pool.num_threads(), most_tiles = (places + width - 1) / width;
  Parts blocks(most_tiles, std::clamp(most_tiles / wanted, int64_t{1}, kTilesAtOnce));
  // As many for each thread.
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  blocks.parts = std::min(most_tiles, (blocks.parts + threads - 1) / threads * threads);
  const int64_t block_size = (most_tiles + blocks.parts - 1) / blocks.parts * width;
  const Parts unit_rows(rows.parts, std::clamp(rows.parts * c.groups * blocks.parts / wanted, int64_t{1}, kRowsAtOnce / kMostRows));
  const int64_t units = c.groups * unit_rows.parts;
  const Parts unit_tasks(units, std::max<int64_t>(1, units * blocks.parts / wanted));
  const int64_t pitch = std::min(depth, kDepth) * width + kLanes<T>,
                most_rows = std::min(c.out, (rows.parts / unit_rows.parts + 1) * kMostRows);
  const std::vector<int64_t> at_once = together<T>(grid);
  std::vector<int32_t> offsets(std::min(depth, kDepth));
  for (size_t k = 0; k < offsets.size(); ++k) offsets[k] = k * width;
  const bool past = past_cache<T>(c.batch * c.groups * c.out * out_size), parted = leaves_out(c, taps);
  parallel(pool, blocks.parts * unit_tasks.parts, [&](int64_t task) {
    const int64_t i = task / unit_tasks.parts, part = task % unit_tasks.parts, tiles = blocks.size(i);
    const int64_t begin = blocks.begin(i) * width, end = std::min(begin + tiles * width, places);
    const Block<T> block(grid, c.groups * c.in, begin, end, width, pitch, past);
    const std::vector<Range> used = parted ? block.used(pitch) : std::vector<Range>(tiles, Range{0, depth});
    const Range read =
        spanned(taps, [&](int64_t tap) { return std::any_of(used.begin(), used.end(), [=](const Range& own) { return own.has(tap); }); });
    const auto patches = memory<T>(tiles * pitch), sums = memory<T>(most_rows * block_size);
    for (int64_t unit = unit_tasks.begin(part); unit < unit_tasks.begin(part + 1); ++unit) {
      const int64_t group = unit / unit_rows.parts, first = unit_rows.begin(unit % unit_rows.parts);
      const int64_t last = first + unit_rows.size(unit % unit_rows.parts), row = rows.begin(first);
      const T* input = x + group * c.in * in_size;
      const T* factors = weights.get() + group * c.out * depth;
      int64_t k = 0;
      do {
        const int64_t base = parted ? k - k % taps : 0;
        const int64_t terms = std::min(kDepth, (parted ? base + taps : depth) - k);
        block.fill(input, {k, k + terms}, read, at_once, patches.get(), width);
        for (int64_t r = first; r < last; ++r) {
          const int64_t o = rows.begin(r), count = rows.size(r);
          for (int64_t t = 0; t < tiles; ++t) {
            const Range own_terms = used[t].within(k - base, terms);
            T* own = block.own(t, y + (group * c.out + o) * out_size, c.groups * c.out);
            T* to = own ? own : sums.get() + (o - row) * block_size + t * width;
            kTiles<T>[count - 1](own_terms.size(), factors + o* depth + (k + own_terms.begin)* count, count, patches.get() + t* pitch,
                                 offsets.data() + own_terms.begin, to, own ? out_size : block_size, k > 0,
                                 bias ? bias + group* c.out + o : nullptr);
          }
        }
        k += terms;
      } while (k < depth);
      for (int64_t o = row; o < rows.begin(last); ++o)
        block.write(sums.get() + (o - row) * block_size, y + (group * c.out + o) * out_size, c.groups * c.out, past);
    }
  });
}

}  // namespace jnn::patches
