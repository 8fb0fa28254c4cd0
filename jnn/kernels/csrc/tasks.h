// Rows or the like shared out in tasks that are worth a thread's while.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"
#include "parallel.h"
#include "products.h"

namespace jnn {

// A task has so many numbers at least.
constexpr int64_t kTask = 32768;
// Larger results than this are written past the cache: 2 / 3 of the time.
constexpr int64_t kPastCache = 4 << 20;

template <class T>
inline bool past_cache(int64_t size) {
  return size * int64_t(sizeof(T)) > kPastCache;
}

// Calls run(begin, end) for tasks of items, `least` of them at least, of `size` numbers each.
template <class Run>
void by_task(Pool& pool, int64_t items, int64_t size, int64_t least, const Run& run) {
  const Parts parts(items, std::max({int64_t{1}, least, kTask / size}));
  parallel(pool, parts.parts, [&](int64_t task) { run(parts.begin(task), parts.begin(task + 1)); });
}

}  // namespace jnn
