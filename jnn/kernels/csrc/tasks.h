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
// Copies of rows, which are over sooner than memory takes them: by 5 to 16 MiB they take twice as long past the cache.
constexpr int64_t kPastCacheCopied = 32 << 20;

template <class T>
inline bool past_cache(int64_t size, int64_t most = kPastCache) {
  return size * int64_t(sizeof(T)) > most;
}

// Calls run(begin, end) for tasks of items, `least` of them at least, of `size` numbers each.
template <class Run>
void by_task(Pool& pool, int64_t items, int64_t size, int64_t least, const Run& run) {
  const Parts parts(items, std::max({int64_t{1}, least, kTask / size}));
  parallel(pool, parts.parts, [&](int64_t task) { run(parts.begin(task), parts.begin(task + 1)); });
}

// So many numbers of a row are computed at a time.
constexpr int64_t kRun = 8192;

// Calls run(row, begin, count) for pieces of all rows, of `size` numbers each.
template <class Run>
void by_run(Pool& pool, int64_t rows, int64_t size, const Run& run) {
  const Parts parts(size, kRun);
  by_task(pool, rows * parts.parts, size / parts.parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(i / parts.parts, parts.begin(i % parts.parts), parts.size(i % parts.parts));
  });
}

}  // namespace jnn
