// Weights in the order in which tiles of products read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "transpose.h"

namespace jnn {

// By group, by up to kMostRows outputs as `rows` has them, by input channel and tap.
template <class T>
Memory<T> ordered(ffi::ThreadPool& pool, const Channels& c, const Grid& grid, const T* w, const Parts& rows) {
  const int64_t depth = c.in * grid.taps.size();
  auto to = memory<T>(c.groups * c.out * depth);
  auto order = [&](int64_t task) {
    const int64_t group = task / rows.parts, begin = rows.begin(task % rows.parts), size = rows.size(task % rows.parts);
    const T* from = w + group * c.group_stride + begin * c.out_stride;
    T* out = to.get() + (group * c.out + begin) * depth;
    const int64_t taps = grid.taps.size();
    if (c.in_stride == taps &&
        std::is_sorted(grid.taps.begin(), grid.taps.end(), [](const Tap& a, const Tap& b) { return a.index < b.index; }))
      return transpose(from, c.out_stride, size, depth, out, size);
    for (int64_t channel = 0; channel < c.in; ++channel)
      for (const Tap& tap : grid.taps)
        for (int64_t i = 0; i < size; ++i) *out++ = from[channel * c.in_stride + i * c.out_stride + tap.index];
  };
  parallel(pool, c.groups * rows.parts, order);
  return to;
}

}  // namespace jnn
