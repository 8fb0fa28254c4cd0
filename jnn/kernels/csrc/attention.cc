// Attention by blocks of queries and of keys.

#include "attention.h"

namespace jnn::attention {
namespace {

// The greatest scores so far and the sums of the exponentials of what others are less.
template <class T, int vectors>
struct Softmax {
  static constexpr T kLeast = -std::numeric_limits<T>::infinity();
  Vector<T> most[vectors], total[vectors];

  Softmax() {
    for (int j = 0; j < vectors; ++j) most[j] = broadcast(kLeast), total[j] = Vector<T>{};
  }
  // Scores become weights. `found`, (width, kQueries), is what was summed up before.
  void take(int64_t keys, T* scores, int64_t width, T* found) {
    constexpr int64_t wide = kQueries<T, vectors>;
    for (int j = 0; j < vectors; ++j) {
      T* column = scores + j * kLanes<T>;
      Vector<T> now = most[j];
      for (int64_t i = 0; i < keys; ++i) {
        const Vector<T> s = load(column + i * wide);
        now = select<T>(s > now, s, now);
      }
      const Vector<T> base = select<T>(now == kLeast, Vector<T>{}, now), less = exp<T>(most[j] - base);
      most[j] = now;
      Vector<T> sum{};
#pragma GCC unroll 2
      for (int64_t i = 0; i < keys; ++i) {
        const Vector<T> weight = exp<T>(load(column + i * wide) - base);
        store(column + i * wide, weight);
        sum += weight;
      }
      total[j] = total[j] * less + sum;
      for (int64_t i = 0; i < width; ++i) store(found + i * wide + j * kLanes<T>, load(found + i * wide + j * kLanes<T>) * less);
    }
  }
  // Divides by the sums, and gives the logarithms of what exponentials of scores sum up to.
  void finish(bool barred, int64_t width, T* found, T* logs) const {
    constexpr int64_t wide = kQueries<T, vectors>;
    for (int j = 0; j < vectors; ++j) {
      // Queries that a mask bars from every key get zeros.
      const auto none = most[j] == kLeast;
      const Vector<T> all = barred ? select<T>(none, broadcast(T{1}), total[j]) : total[j];
      for (int64_t i = 0; i < width; ++i) store(found + i * wide + j * kLanes<T>, load(found + i * wide + j * kLanes<T>) / all);
      store(logs + j * kLanes<T>, select<T>(none, Vector<T>{}, most[j]) + log<T>(all));
    }
  }
};

// Drops weights of keys from `first` on.
template <class T, int vectors>
void drop(const Queries<T>& q, int64_t first, int64_t keys, T* weights) {
  for (int64_t i = 0; q.kept.data && i < keys; ++i)
    for (int j = 0; j < vectors; ++j, weights += kLanes<T>) store(weights, load(weights) * q.factor(first + i, j));
}

template <class T>
struct Forward {
  const T *k, *v, *packed;
  T *y, *logs;
  T scale;
};

template <class T, int vectors>
void attend(const Queries<T>& q, const Forward<T>& f, const T* queries) {
  constexpr int64_t wide = kQueries<T, vectors>, most_keys = kPanelsAtOnce * kMostRows;
  const int64_t width = q.sizes.width, value_width = q.sizes.value_width;
  const auto own = zeros<T>((width + value_width + 2 * most_keys) * wide);
  T *turned = own.get(), *found = turned + width * wide, *held = found + value_width * wide, *bias = held + most_keys * wide;
  turn<T, vectors>(queries, width, q.count, f.scale, turned);
  Softmax<T, vectors> softmax;
  for (int64_t begin = 0; begin < q.panels.parts && q.panels.begin(begin) < q.seen(); begin += kPanelsAtOnce) {
    const int64_t end = std::min(begin + kPanelsAtOnce, q.panels.parts), first = q.panels.begin(begin), keys = q.panels.begin(end) - first;
    scores<T, vectors>(q, begin, end, f.packed, turned, bias, held);
    softmax.take(keys, held, value_width, found);
    drop<T, vectors>(q, first, keys, held);
    add_rows<T, vectors>(keys, held, f.v + first * value_width, value_width, found);
  }
  T logs[wide];
  softmax.finish(q.bias != nullptr, value_width, found, logs);
  std::copy_n(logs, q.count, f.logs + q.first);
  transpose(found, wide, value_width, q.count, f.y + q.first * value_width, value_width);
}

// Attention of few queries.
template <class T>
void attend_few(const Sizes& s, const T* q, const T* k, const T* v, const T* bias, int64_t bias_row, Kept<T> kept, T* y, T* logs) {
  const auto own = memory<T>(s.width + s.keys);
  T* weights = own.get() + s.width;
  for (int64_t i = 0; i < s.queries; ++i) {
    for (int64_t j = 0; j < s.width; ++j) own[j] = T(s.scale) * q[i * s.width + j];
    logs[i] = weigh(s, i, own.get(), k, bias ? bias + i * bias_row : nullptr, weights);
    std::fill_n(y + i * s.value_width, s.value_width, T{0});
    for (int64_t key = 0; key < s.keys; ++key)
      add(s.value_width, weights[key] * kept.at(key, i), v + key * s.value_width, y + i * s.value_width);
  }
}

template <class T>
void forward(Pool& pool, const Sizes& s, const T* q, const T* k, const T* v, const Bias<T>& bias, Kept<T> kept, T* y, T* logs) {
  if (s.queries <= kFew) {
    return parallel(pool, s.heads, [&](int64_t head) {
      attend_few(s, q + head * s.queries * s.width, k + head * s.keys * s.width, v + head * s.keys * s.value_width, bias.of(head, s),
                 bias.row, kept.of(head, s.keys), y + head * s.queries * s.value_width, logs + head * s.queries);
    });
  }
  const Parts panels(s.keys, kMostRows);
  const int64_t blocks = (s.queries + kQueries<T, 2> - 1) / kQueries<T, 2>;
  const Parts parts(blocks, std::max<int64_t>(1, blocks * s.heads / (kTasksAThread * pool.num_threads())));
  parallel(pool, s.heads * parts.parts, [&](int64_t task) {
    const int64_t head = task / parts.parts, part = task % parts.parts;
    const int64_t begin = parts.begin(part) * kQueries<T, 2>, end = std::min(s.queries, parts.begin(part + 1) * kQueries<T, 2>);
    const auto packed = memory<T>(s.keys * s.width);
    pack(k + head * s.keys * s.width, s.width, panels, 0, panels.parts, packed.get());
    const Forward<T> f{k + head * s.keys * s.width,          v + head * s.keys * s.value_width, packed.get(),
                       y + head * s.queries * s.value_width, logs + head * s.queries,           T(s.scale)};
    by_block<T>(begin, end, [&](auto vectors, int64_t first, int64_t count) {
      const Queries<T> block{s, panels, bias.of(head, s), bias.row, kept.of(head, s.keys), first, count};
      attend<T, vectors()>(block, f, q + (head * s.queries + first) * s.width);
    });
  });
}

ffi::Error call(Pool pool, In q, In k, In v, In bias, Bools mask, Out y, Out logs, bool causal, double scale, double rate) {
  const Sizes s = sizes_of(q, v, causal, scale, rate);
  return by_type(q.element_type(), [&](auto zero) {
    using T = decltype(zero);
    forward<T>(pool, s, data<T>(q), data<T>(k), data<T>(v), bias_of<T>(bias, s), kept_of<T>(mask, s), data<T>(y), data<T>(logs));
  });
}

auto bound() {
  return with_attributes(ffi::Ffi::Bind().Ctx<Pool>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<Bools>().Ret<In>().Ret<In>());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_attention, call, bound());

}  // namespace jnn::attention
