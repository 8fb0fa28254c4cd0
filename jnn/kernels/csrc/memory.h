// Memory that is a task's own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace jnn {

struct Freed {
  void operator()(void* memory) const { std::free(memory); }
};

template <class T>
using Memory = std::unique_ptr<T[], Freed>;

// For `size` numbers, of any values, from the begin of a cache line on: vectors that cross lines take twice as long.
template <class T>
Memory<T> memory(int64_t size) {
  constexpr size_t kLine = 64;
  void* found = std::aligned_alloc(kLine, (size * sizeof(T) / kLine + 1) * kLine);
  if (!found) throw std::bad_alloc();
  return Memory<T>(static_cast<T*>(found));
}

template <class T>
Memory<T> zeros(int64_t size) {
  Memory<T> found = memory<T>(size);
  std::fill_n(found.get(), size, T{0});
  return found;
}

}  // namespace jnn
