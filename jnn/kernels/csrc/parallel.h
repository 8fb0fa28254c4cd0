// Work shared with the threads of the program that calls.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace jnn {

namespace ffi = xla::ffi;

// Calls run(0), ..., run(tasks - 1) on the caller and on threads of the pool that come to it. The caller takes every task that
// no other thread has begun and waits for those begun only: callers that occupy the whole pool do not wait for each other.
template <class Run>
void parallel(ffi::ThreadPool& pool, int64_t tasks, const Run& run) {
  struct State {
    std::atomic<int64_t> next{0};
    std::atomic<int> running{0};
    std::atomic<bool> closed{false};
  };
  const int64_t helpers = std::min(tasks, pool.num_threads()) - 1;
  if (helpers < 1) {
    for (int64_t i = 0; i < tasks; ++i) run(i);
    return;
  }
  auto state = std::make_shared<State>();
  auto work = [&run, tasks](State& state) {
    for (int64_t i; (i = state.next.fetch_add(1)) < tasks;) run(i);
  };
  for (int64_t i = 0; i < helpers; ++i) {
    pool.Schedule([state, work] {
      state->running.fetch_add(1);
      if (!state->closed.load()) work(*state);
      state->running.fetch_sub(1);
    });
  }
  work(*state);
  state->closed.store(true);
  while (state->running.load()) std::this_thread::yield();
}

}  // namespace jnn
