// Weights in the order in which products read them.
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

namespace jnn {

// Of kernels so many times as large as what is used of them that is copied.
constexpr int64_t kManyTimes = 2;

// Drops the taps that no place reads, as most are of images smaller than the kernel. Where few are left the weight has those alone, which
// is returned, and of which channels and grids are then.
template <class T>
Memory<T> used_alone(Pool& pool, Channels& c, std::vector<Grid>& grids, Grid* whole, const T* w) {
  std::vector<Grid*> all;
  for (Grid& grid : grids) all.push_back(&grid);
  if (whole) all.push_back(whole);
  std::vector<int64_t> used;
  for (Grid* grid : all) {
    grid->prune();
    for (const Tap& tap : grid->taps) used.push_back(tap.index);
  }
  std::sort(used.begin(), used.end());
  used.erase(std::unique(used.begin(), used.end()), used.end());
  const int64_t kernel = c.kernel(), count = used.size();
  if (used.empty() || count * kManyTimes > kernel) return nullptr;
  auto to = memory<T>(c.groups * c.in * c.out * count);
  by_task(pool, c.groups * c.in * c.out, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t tap = 0; tap < count; ++tap) to[i * count + tap] = w[i * kernel + used[tap]];
  });
  for (Grid* grid : all)
    for (Tap& tap : grid->taps) tap.index = std::lower_bound(used.begin(), used.end(), tap.index) - used.begin();
  for (int64_t* stride : {&c.in_stride, &c.out_stride, &c.group_stride}) *stride = *stride / kernel * count;
  return to;
}

// Of some input channels, from `channel` on, and `outputs` outputs: to[(channel * kernel + tap) * pitch + output]. w is the first output's.
template <class T>
void by_tap(const Channels& c, const T* w, int64_t channel, int64_t channels, int64_t outputs, T* to, int64_t pitch) {
  const int64_t kernel = c.kernel();
  w += channel * c.in_stride;
  if (c.in_stride == kernel) return transpose(w, c.out_stride, outputs, channels * kernel, to, pitch);
  for (int64_t i = 0; i < channels; ++i, w += c.in_stride)
    for (int64_t tap = 0; tap < kernel; ++tap, to += pitch)
      for (int64_t o = 0; o < outputs; ++o) to[o] = w[o * c.out_stride + tap];
}

// By group, by up to kMostRows outputs as `rows` has them, by input channel and tap of the grid.
template <class T>
Memory<T> ordered(Pool& pool, const Channels& c, const Grid& grid, const T* w, const Parts& rows) {
  const int64_t taps = grid.taps.size(), kernel = c.kernel(), depth = c.in * taps;
  auto to = memory<T>(c.groups * c.out * depth);
  parallel(pool, c.groups * rows.parts, [&](int64_t task) {
    const int64_t group = task / rows.parts, begin = rows.begin(task % rows.parts), size = rows.size(task % rows.parts);
    const T* from = w + group * c.group_stride + begin * c.out_stride;
    T* out = to.get() + (group * c.out + begin) * depth;
    if (taps == kernel) return by_tap(c, from, 0, c.in, size, out, size);
    const auto all = memory<T>(kernel * size);
    for (int64_t channel = 0; channel < c.in; ++channel) {
      by_tap(c, from, channel, 1, size, all.get(), size);
      for (const Tap& tap : grid.taps) out = copy_short(all.get() + tap.index * size, size, out);
    }
  });
  return to;
}

}  // namespace jnn
