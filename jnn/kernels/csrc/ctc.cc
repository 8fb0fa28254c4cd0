// Connectionist temporal classification: the probability of all alignments of labels to frames, and its gradient.

#include <algorithm>
#include <cstdint>

#include "buffers.h"
#include "functions.h"
#include "lanes.h"
#include "memory.h"
#include "parallel.h"
#include "sums.h"
#include "tasks.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

// The logarithm of probability 0: finite, so that differences of two of them are 0 and not NaN.
constexpr double kZero = -1e30;

template <class T>
Vector<T> greater(Vector<T> a, Vector<T> b) {
  return select<T>(a > b, a, b);
}

// What a call is given: log_probs (frames, batch, classes), labels (batch, longest), and of each sequence the frames and labels that count.
template <class T>
struct Batch {
  int64_t frames, batch, classes, longest, blank;
  const T* log_probs;
  const int32_t *labels, *used, *lengths;

  Batch(In log_probs, In labels, In used, In lengths, int64_t blank)
      : frames(log_probs.dimensions()[0]),
        batch(log_probs.dimensions()[1]),
        classes(log_probs.dimensions()[2]),
        longest(labels.dimensions()[1]),
        blank(blank),
        log_probs(data<T>(log_probs)),
        labels(data<int32_t>(labels)),
        used(data<int32_t>(used)),
        lengths(data<int32_t>(lengths)) {}
};

// Of one sequence. `gap` and `before` are log-probabilities after a frame, of s = 0 to the number of labels: of having emitted s labels and
// then a blank, and of having emitted s labels with no blank since. They have room for whole vectors, and one number more.
template <class T>
struct Sequence {
  const Batch<T>& of;
  int64_t n, size, room;
  const int32_t* labels;
  Memory<T> numbers;
  // Of the label after s: its log-probability in a frame, and what bars it from following the one before it without a blank.
  T *emitted, *barred;

  Sequence(const Batch<T>& of, int64_t n)
      : of(of),
        n(n),
        size(of.lengths[n] + 1),
        room(whole<T>(size + 1) + kLanes<T>),
        labels(of.labels + n * of.longest),
        numbers(memory<T>(2 * room + kLanes<T>)),
        emitted(numbers.get() + kLanes<T>),
        barred(emitted + room) {
    std::fill_n(numbers.get(), 2 * room + kLanes<T>, T{0});
    for (int64_t s = 1; s < size - 1; ++s) barred[s] = labels[s] == labels[s - 1] ? T(kZero) : T{0};
  }

  int64_t frames() const { return std::clamp<int64_t>(of.used[n], 0, of.frames); }
  const T* frame(int64_t t) const { return of.log_probs + (t * of.batch + n) * of.classes; }
  T probability(int64_t t, int64_t at) const { return std::max(frame(t)[at], T(kZero)); }
  void emit(int64_t t) {
    for (int64_t s = 0; s < size - 1; ++s) emitted[s] = probability(t, labels[s]);
  }
};

// One frame, from the states before it to those after it.
template <class T>
void step(Sequence<T>& sequence, int64_t t, const T* gap, const T* before, T* new_gap, T* new_before) {
  sequence.emit(t);
  const T blank = sequence.probability(t, sequence.of.blank);
  for (int64_t s = 0; s < sequence.size; s += kLanes<T>) {
    const Vector<T> rest = load(gap + s), last = load(before + s), next = load(before + s + 1), skip = last + load(sequence.barred + s);
    const Vector<T> most = greater<T>(rest, last);
    store(new_gap + s, most + log<T>(T{1} + exp<T>(-absolute<T>(rest - last))) + blank);
    const Vector<T> top = greater<T>(greater<T>(next, rest), skip);
    const Vector<T> sum = exp<T>(next - top) + exp<T>(rest - top) + exp<T>(skip - top);
    store(new_before + s + 1, top + log<T>(sum) + load(sequence.emitted + s));
  }
  new_before[0] = T(kZero);
}

// The log-likelihood. `record`, where there is one, takes the states before each frame and after the last: 2 rows of `longest` + 1.
template <class T>
T likelihood(const Batch<T>& batch, int64_t n, T* record) {
  Sequence<T> sequence(batch, n);
  const int64_t room = sequence.room, size = sequence.size;
  const Memory<T> states = memory<T>(4 * room);
  std::fill_n(states.get(), 4 * room, T(kZero));
  T *now = states.get(), *then = now + 2 * room;
  now[0] = 0;
  for (int64_t t = 0;; ++t, std::swap(now, then)) {
    if (record) {
      std::copy_n(now, size, record + 2 * t * (batch.longest + 1));
      std::copy_n(now + room, size, record + (2 * t + 1) * (batch.longest + 1));
    }
    if (t == sequence.frames()) break;
    step(sequence, t, now, now + room, then, then + room);
  }
  const Vector<T> rest = broadcast(now[size - 1]), last = broadcast(now[room + size - 1]);
  return (greater<T>(rest, last) + log<T>(T{1} + exp<T>(-absolute<T>(rest - last))))[0];
}

// One frame backwards: from the log-probabilities of what comes after it to those of it and what comes after, by the state it ends in.
template <class T>
void step_back(const Sequence<T>& sequence, T blank, const T* gap, const T* before, T* new_gap, T* new_before) {
  for (int64_t s = 0; s < sequence.size; s += kLanes<T>) {
    const Vector<T> rest = load(gap + s), stay = load(before + s), next = load(before + s + 1), skip = next + load(sequence.barred + s);
    const Vector<T> most = greater<T>(rest, next), top = greater<T>(greater<T>(stay, rest), skip);
    store(new_gap + s, most + log<T>(T{1} + exp<T>(-absolute<T>(rest - next))) + blank);
    const Vector<T> sum = exp<T>(stay - top) + exp<T>(rest - top) + exp<T>(skip - top);
    store(new_before + s, top + log<T>(sum) + load(sequence.emitted + s - 1));
  }
}

// The gradient of a likelihood, `g` times, by the log_probs of its sequence: the probability that each frame is of a class, given the
// labels. From logarithms, as torch has it, and so with errors like its own: the derivative of each step in turn would have smaller ones.
template <class T>
void slopes_of(const Batch<T>& batch, int64_t n, T g, T found, const T* record, T* slopes) {
  Sequence<T> sequence(batch, n);
  const int64_t room = sequence.room, size = sequence.size, row = batch.longest + 1;
  const int64_t last = found < T(kZero / 2) ? 0 : sequence.frames();
  const Memory<T> states = memory<T>(5 * room);
  std::fill_n(states.get(), 4 * room, T(kZero));
  T *now = states.get(), *then = now + 2 * room, *shares = then + 2 * room;
  for (int64_t t = batch.frames - 1; t >= 0; --t) {
    T* to = slopes + (t * batch.batch + n) * batch.classes;
    std::fill_n(to, batch.classes, T{0});
    if (t >= last) continue;
    sequence.emit(t);
    const T blank = sequence.probability(t, batch.blank);
    if (t == last - 1) {
      then[size - 1] = blank;
      if (size > 1) then[room + size - 1] = sequence.emitted[size - 2];
    } else {
      step_back(sequence, blank, now, now + room, then, then + room);
    }
    // Of a probability of 0 it is 0.
    const auto add = [&](int64_t at, T share) {
      if (!(sequence.frame(t)[at] <= T(kZero))) to[at] += g * share;
    };
    const auto share = [&](int64_t half, int64_t at, auto lanes, Vector<T> emitted) {
      const T* reached = record + (2 * (t + 1) + half) * row;
      return exp<T>(lanes.load(reached + at) + lanes.load(then + half * room + at) - found - emitted);
    };
    add(batch.blank, sum_of<T>(size, [&](int64_t at, auto lanes) { return lanes.keep(share(0, at, lanes, broadcast(blank))); }));
    vectors<T>(size, [&](int64_t at, auto, auto lanes) { store(shares + at, share(1, at, lanes, load(sequence.emitted + at - 1))); });
    for (int64_t s = 0; s < size - 1; ++s) add(sequence.labels[s], shares[s + 1]);
    std::swap(now, then);
  }
}

// Calls run(n) for each sequence.
template <class T, class Run>
void by_sequence(Pool& pool, const Batch<T>& batch, const Run& run) {
  // A frame takes as long as so many numbers of other work for each vector.
  constexpr int64_t kFrame = 256;
  by_task(pool, batch.batch, batch.frames * (batch.longest / kLanes<T> + 1) * kFrame, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) run(n);
  });
}

ffi::Error forward(Pool pool, int64_t blank, In log_probs, In labels, In used, In lengths, Out found, ffi::RemainingRets record) {
  return by_type(log_probs.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Batch<T> batch(log_probs, labels, used, lengths, blank);
    T* states = record.size() ? static_cast<T*>((*record.get<ffi::AnyBuffer>(0))->untyped_data()) : nullptr;
    const int64_t size = 2 * (batch.frames + 1) * (batch.longest + 1);
    by_sequence(pool, batch, [&](int64_t n) { data<T>(found)[n] = likelihood(batch, n, states ? states + n * size : nullptr); });
  });
}

ffi::Error backward(Pool pool, int64_t blank, In g, In log_probs, In labels, In used, In lengths, In found, In record, Out slopes) {
  return by_type(log_probs.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const Batch<T> batch(log_probs, labels, used, lengths, blank);
    const int64_t size = 2 * (batch.frames + 1) * (batch.longest + 1);
    by_sequence(pool, batch,
                [&](int64_t n) { slopes_of(batch, n, data<T>(g)[n], data<T>(found)[n], data<T>(record) + n * size, data<T>(slopes)); });
  });
}

auto bound() { return ffi::Ffi::Bind().Ctx<Pool>().Attr<int64_t>("blank"); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_ctc, forward, bound().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Ret<In>().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_ctc_backward, backward,
                              bound().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Ret<In>());

}  // namespace jnn
