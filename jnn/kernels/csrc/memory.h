// Memory that is a task's own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace jnn {

// Blocks that a thread has freed, for its next tasks. The C library's allocator has one lock and one list for all threads and for XLA's
// arrays too: after a larger program has left its pieces there, a third of a training step was spent in it.
class Blocks {
 public:
  // From the begin of a cache line on: vectors that cross lines take twice as long.
  void* take(size_t wanted) {
    const size_t bytes = (wanted / kLine + 1) * kLine;
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block)
      if (size(*block) >= bytes && size(*block) / 2 <= bytes && (best == kept_.end() || size(*block) < size(*best))) best = block;
    if (best == kept_.end()) return allocated(bytes);
    void* found = *best;
    kept_.erase(best);
    bytes_ -= size(found);
    return found;
  }

  void give(void* block) {
    if (size(block) > kMost / 2) return release(block);
    kept_.push_back(block);
    bytes_ += size(block);
    while (bytes_ > kMost || kept_.size() > kMostBlocks) {
      bytes_ -= size(kept_.front());
      release(kept_.front());
      kept_.erase(kept_.begin());
    }
  }

  ~Blocks() { std::for_each(kept_.begin(), kept_.end(), release); }

 private:
  static constexpr size_t kLine = 64, kMost = 64 << 20, kMostBlocks = 32;

  // A block's size stands in the line before it.
  static size_t& size(void* block) { return *reinterpret_cast<size_t*>(static_cast<char*>(block) - kLine); }
  static void release(void* block) { std::free(static_cast<char*>(block) - kLine); }
  static void* allocated(size_t bytes) {
    void* found = std::aligned_alloc(kLine, kLine + bytes);
    if (!found) throw std::bad_alloc();
    void* block = static_cast<char*>(found) + kLine;
    size(block) = bytes;
    return block;
  }

  std::vector<void*> kept_;
  size_t bytes_ = 0;
};

inline thread_local Blocks kept_blocks;

struct Freed {
  void operator()(void* memory) const { kept_blocks.give(memory); }
};

template <class T>
using Memory = std::unique_ptr<T[], Freed>;

// For `size` numbers, of any values.
template <class T>
Memory<T> memory(int64_t size) {
  return Memory<T>(static_cast<T*>(kept_blocks.take(size * sizeof(T))));
}

template <class T>
Memory<T> zeros(int64_t size) {
  Memory<T> found = memory<T>(size);
  std::fill_n(found.get(), size, T{0});
  return found;
}

}  // namespace jnn
