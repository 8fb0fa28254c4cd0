// Weights in the order in which products read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "transpose.h"

namespace jnn {

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
      for (const Tap& tap : grid.taps) out = std::copy_n(all.get() + tap.index * size, size, out);
    }
  });
  return to;
}

}  // namespace jnn
