// Work shared with the threads of the program that calls.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "lanes.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {

namespace ffi = xla::ffi;

// For balance there are so many tasks for each thread.
constexpr int64_t kTasksAThread = 4;

// Waits for a moment, the longer the more turns there were.
inline void wait(int turns) {
  constexpr int kPatience = 4000;
  if (turns > kPatience) return std::this_thread::yield();
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// The threads of the program that calls, for one call of the library. Those that have come to help stay until it is over: each time that
// one is asked for, another is woken that sleeps, which may take the caller's core from it.
class Pool {
 public:
  explicit Pool(ffi::ThreadPool threads) : threads_(threads) {}
  Pool(Pool&&) = default;
  ~Pool() {
    if (crew_) crew_->open.store(Crew::kOver);
  }

  int64_t num_threads() const { return std::max<int64_t>(1, threads_.num_threads()); }

  // Calls work(0) on the caller, and work(1), ..., `members` in all at most, on threads that come before the caller is done. It waits for
  // those that have come only: callers that occupy the whole pool do not wait for each other.
  template <class Work>
  void together(int64_t members, const Work& work) {
    if (!crew_) crew_ = std::make_shared<Crew>();
    crew_->job = [](const void* context, int64_t member) { (*static_cast<const Work*>(context))(member); };
    crew_->context = &work;
    crew_->members = members;
    crew_->open.store(++jobs_);
    for (; asked_ < members; ++asked_) threads_.Schedule([crew = crew_, member = asked_] { crew->help(member); });
    work(0);
    crew_->open.store(Crew::kNone);
    for (int turns = 0; crew_->running.load(); ++turns) wait(turns);
  }

 private:
  struct Crew {
    static constexpr int64_t kNone = 0, kOver = -1;

    void (*job)(const void*, int64_t);
    const void* context;
    int64_t members;
    // The number of the job that may be joined.
    std::atomic<int64_t> open{kNone};
    std::atomic<int> running{0};

    void help(int64_t member) {
      int64_t known = kNone;
      for (int turns = 0;; ++turns) {
        const int64_t found = open.load();
        if (found == kOver) return;
        if (found == kNone || found == known) {
          wait(turns);
          continue;
        }
        running.fetch_add(1);
        // The caller waits for whoever sees it open now, and opens no other before.
        if (open.load() == found && member < members) job(context, member);
        running.fetch_sub(1);
        known = found;
        turns = 0;
      }
    }
  };

  ffi::ThreadPool threads_;
  std::shared_ptr<Crew> crew_;
  int64_t jobs_ = 0, asked_ = 1;
};

// Calls run(0), ..., run(tasks - 1) on the caller and, unless it works `alone`, on threads of the pool that come to it. What they stream
// is there afterwards.
template <class Run>
void parallel(Pool& pool, int64_t tasks, const Run& run, bool alone = false) {
  const int64_t members = alone ? 1 : std::min(tasks, pool.num_threads());
  if (members < 2) {
    for (int64_t i = 0; i < tasks; ++i) run(i);
    return streamed();
  }
  std::atomic<int64_t> next{0};
  pool.together(members, [&](int64_t) {
    for (int64_t i; (i = next.fetch_add(1)) < tasks;) run(i);
    streamed();
  });
}

// Of `members` threads each begins with its own share of the tasks of a stage, always the same, whose data are in its cache, and takes
// what others have not begun when it has done that.
class Stages {
 public:
  Stages(const std::vector<int64_t>& tasks, int64_t members)
      : tasks_(tasks), members_(members), claims_(new Claim[*std::max_element(tasks.begin(), tasks.end())]) {}

  // Takes part, as the `member`-th, until all stages are over: calls run(stage, task) for what it takes.
  template <class Run>
  void work(int64_t member, const Run& run) {
    int64_t target = 0;
    for (size_t stage = 0; stage < tasks_.size(); ++stage) {
      target += tasks_[stage];
      if (finished_.load(std::memory_order_acquire) >= target) continue;
      if (const int64_t done = stage_of(member, stage, run)) finished_.fetch_add(done, std::memory_order_acq_rel);
      for (int turns = 0; finished_.load(std::memory_order_acquire) < target; ++turns) wait(turns);
    }
  }

 private:
  // The stage that a task was last begun in, and 1 more.
  struct alignas(64) Claim {
    std::atomic<int64_t> stage{0};
  };

  bool claim(int64_t task, int64_t stage) {
    int64_t seen = claims_[task].stage.load(std::memory_order_relaxed);
    return seen <= stage && claims_[task].stage.compare_exchange_strong(seen, stage + 1, std::memory_order_acq_rel);
  }

  template <class Run>
  int64_t stage_of(int64_t member, int64_t stage, const Run& run) {
    const int64_t tasks = tasks_[stage];
    int64_t done = 0;
    auto take = [&](int64_t task) {
      if (claim(task, stage)) run(stage, task), ++done;
    };
    for (int64_t task = member * tasks / members_; task < (member + 1) * tasks / members_; ++task) take(task);
    for (int64_t i = 1; i < members_; ++i) {
      const int64_t other = (member + i) % members_;
      for (int64_t task = (other + 1) * tasks / members_ - 1; task >= other * tasks / members_; --task) take(task);
    }
    return done;
  }

  const std::vector<int64_t>& tasks_;
  const int64_t members_;
  std::unique_ptr<Claim[]> claims_;
  alignas(64) std::atomic<int64_t> finished_{0};
};

// Calls run(stage, task) for every stage and each of its tasks, a stage after the one before is over.
template <class Run>
void in_stages(Pool& pool, const std::vector<int64_t>& tasks, const Run& run) {
  const int64_t members = std::min(*std::max_element(tasks.begin(), tasks.end()), pool.num_threads());
  if (members < 2) {
    for (size_t stage = 0; stage < tasks.size(); ++stage)
      for (int64_t task = 0; task < tasks[stage]; ++task) run(stage, task);
    return;
  }
  Stages stages(tasks, members);
  pool.together(members, [&](int64_t member) { stages.work(member, run); });
}

}  // namespace jnn

template <>
struct xla::ffi::CtxDecoding<jnn::Pool> {
  using Type = jnn::Pool;

  static std::optional<Type> Decode(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context, DiagnosticEngine& diagnostic) {
    return Type(*CtxDecoding<ThreadPool>::Decode(api, context, diagnostic));
  }
};
