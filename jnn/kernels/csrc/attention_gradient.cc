// The gradients of attention by blocks of queries and of keys, whose weights are computed again.

#include "attention.h"

namespace jnn::attention {
namespace {

// The tasks of a gradient, which sums up their parts, are so many on any machine.
constexpr int64_t kTasks = 16;

// By scores they are (queries, keys), where they are wanted.
template <class T>
struct Gradients {
  T *by_q, *by_k, *by_v, *by_score;

  Gradients of(int64_t head, const Sizes& s) const {
    return {by_q + head * s.queries * s.width, by_k + head * s.keys * s.width, by_v + head * s.keys * s.value_width,
            by_score ? by_score + head * s.queries * s.keys : nullptr};
  }
};

// Its gradients.
template <class T>
void differentiate_few(const Sizes& s, const T* q, const T* k, const T* v, const T* bias, int64_t bias_row, Kept<T> kept, const T* y,
                       const T* g, const Gradients<T>& to) {
  const T scale = s.scale;
  const auto own = memory<T>(s.width + s.keys);
  T* weights = own.get() + s.width;
  std::fill_n(to.by_k, s.keys * s.width, T{0});
  std::fill_n(to.by_v, s.keys * s.value_width, T{0});
  std::fill_n(to.by_q, s.queries * s.width, T{0});
  for (int64_t i = 0; i < s.queries; ++i) {
    for (int64_t j = 0; j < s.width; ++j) own[j] = scale * q[i * s.width + j];
    weigh(s, i, own.get(), k, bias ? bias + i * bias_row : nullptr, weights);
    const T* slope = g + i * s.value_width;
    const T mean = dot(s.value_width, slope, y + i * s.value_width);
    for (int64_t key = 0; key < s.keys; ++key) {
      const T factor = kept.at(key, i), by_score = weights[key] * (dot(s.value_width, slope, v + key * s.value_width) * factor - mean);
      add(s.value_width, weights[key] * factor, slope, to.by_v + key * s.value_width);
      add(s.width, by_score, own.get(), to.by_k + key * s.width);
      add(s.width, by_score * scale, k + key * s.width, to.by_q + i * s.width);
      if (to.by_score) to.by_score[i * s.keys + key] = by_score;
    }
  }
}

// A width filled up to whole tiles.
template <class T>
int64_t tiled(int64_t width) {
  return (width + kTileColumns<T> - 1) / kTileColumns<T> * kTileColumns<T>;
}

// Adds the products of `keys` rows of weights (kQueries) and (count, width), whose rows are `pitch` apart, to (keys, pitch).
template <class T, int vectors>
void add_outer(const Parts& panels, int64_t begin, int64_t end, int64_t count, const T* weights, const T* rows, int64_t pitch, T* to) {
  constexpr int64_t wide = kQueries<T, vectors>;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t at = panels.begin(p) - panels.begin(begin), size = panels.size(p);
    for (int64_t column = 0; column < pitch; column += kTileColumns<T>)
      kProducts<T, kTileVectors, wide>[size - 1](count, weights + at* wide, 1, rows + column, pitch, to + at* pitch + column, pitch, true);
  }
}

// What a task of the gradient has of one head: keys of some panels.
template <class T>
struct Backward {
  int64_t begin, end;
  const T *q, *k, *v, *y, *logs, *g;
  const T *packed_k, *packed_v;
  T *by_q, *by_k, *by_v, *by_score;
  T scale;
};

// Rows of (count, width), times scale, `pitch` apart.
template <class T>
void spread(const T* from, int64_t width, int64_t count, T scale, T* to, int64_t pitch) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < width; ++j) to[i * pitch + j] = scale * from[i * width + j];
    std::fill(to + i * pitch + width, to + (i + 1) * pitch, T{0});
  }
}

// Scores become weights, of which some are dropped, and slopes of those the slopes of scores: exp(score - log) and weight * (slope - mean).
template <class T, int vectors>
void slopes(const Queries<T>& q, int64_t first, int64_t keys, const T* logs, const T* means, T* weights, T* slopes) {
  constexpr int64_t wide = kQueries<T, vectors>;
  for (int64_t i = 0; i < keys; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) {
      const int64_t at = i * wide + j * kLanes<T>;
      const Vector<T> weight = exp<T>(load(weights + at) - load(logs + j * kLanes<T>));
      const Vector<T> factor = q.kept.data ? q.factor(first + i, j) : broadcast(T{1});
      store(weights + at, weight * factor);
      store(slopes + at, weight * (load(slopes + at) * factor - load(means + j * kLanes<T>)));
    }
  }
}

template <class T, int vectors>
void differentiate(const Queries<T>& q, const Backward<T>& b) {
  constexpr int64_t wide = kQueries<T, vectors>, most_keys = kPanelsAtOnce * kMostRows;
  const int64_t width = q.sizes.width, value_width = q.sizes.value_width, pitch = tiled<T>(width), value_pitch = tiled<T>(value_width);
  const auto own = zeros<T>((2 * width + value_width + pitch + value_pitch + 3 * most_keys) * wide);
  T *turned = own.get(), *turned_g = turned + width * wide, *by_q = turned_g + value_width * wide, *rows = by_q + width * wide;
  T *rows_g = rows + pitch * wide, *weights = rows_g + value_pitch * wide, *slope = weights + most_keys * wide,
    *bias = slope + most_keys * wide;
  const T *queries = b.q + q.first * width, *g = b.g + q.first * value_width, *y = b.y + q.first * value_width;
  turn<T, vectors>(queries, width, q.count, b.scale, turned);
  turn<T, vectors>(g, value_width, q.count, T{1}, turned_g);
  spread(queries, width, q.count, b.scale, rows, pitch);
  spread(g, value_width, q.count, T{1}, rows_g, value_pitch);
  T logs[wide], means[wide] = {};
  // No weight is left of queries that are not there.
  std::fill(std::copy_n(b.logs + q.first, q.count, logs), logs + wide, std::numeric_limits<T>::infinity());
  for (int64_t i = 0; i < q.count; ++i)
    for (int64_t j = 0; j < value_width; ++j) means[i] += g[i * value_width + j] * y[i * value_width + j];
  T* by_score = b.by_score ? b.by_score + q.first * q.sizes.keys : nullptr;
  for (int64_t begin = b.begin; begin < b.end; begin += kPanelsAtOnce) {
    const int64_t end = std::min(begin + kPanelsAtOnce, b.end), first = q.panels.begin(begin), keys = q.panels.begin(end) - first;
    if (first >= q.seen()) {
      for (int64_t i = 0; by_score && i < q.count; ++i) std::fill_n(by_score + i * q.sizes.keys + first, keys, T{0});
      continue;
    }
    const int64_t own_first = first - q.panels.begin(b.begin);
    scores<T, vectors>(q, begin, end, b.packed_k - q.panels.begin(b.begin) * width, turned, bias, weights);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t at = q.panels.begin(p) - first, size = q.panels.size(p);
      kProducts<T, vectors, 1>[size - 1](value_width, b.packed_v + (own_first + at)* value_width, size, turned_g, wide, slope + at* wide,
                                         wide, false);
    }
    slopes<T, vectors>(q, first, keys, logs, means, weights, slope);
    if (by_score) transpose(slope, wide, keys, q.count, by_score + first, q.sizes.keys);
    add_rows<T, vectors>(keys, slope, b.k + first * width, width, by_q);
    add_outer<T, vectors>(q.panels, begin, end, q.count, slope, rows, pitch, b.by_k + own_first * pitch);
    add_outer<T, vectors>(q.panels, begin, end, q.count, weights, rows_g, value_pitch, b.by_v + own_first * value_pitch);
  }
  for (int64_t i = 0; i < width * wide; ++i) by_q[i] *= b.scale;
  transpose(by_q, wide, width, q.count, b.by_q + q.first * width, width);
}

template <class T>
void backward(Pool& pool, const Sizes& s, const T* q, const T* k, const T* v, const Bias<T>& bias, Kept<T> kept, const T* y, const T* logs,
              const T* g, const Gradients<T>& to) {
  if (s.queries <= kFew) {
    return parallel(pool, s.heads, [&](int64_t head) {
      const int64_t query = head * s.queries, key = head * s.keys;
      differentiate_few(s, q + query * s.width, k + key * s.width, v + key * s.value_width, bias.of(head, s), bias.row,
                        kept.of(head, s.keys), y + query * s.value_width, g + query * s.value_width, to.of(head, s));
    });
  }
  const Parts panels(s.keys, kMostRows), parts(panels.parts, std::max<int64_t>(kPanelsAtOnce, panels.parts * s.heads / kTasks));
  const int64_t size = s.heads * s.queries * s.width, pitch = tiled<T>(s.width), value_pitch = tiled<T>(s.value_width);
  // Each part of the keys has its own gradient by the queries, and they are added up.
  const auto more = memory<T>((parts.parts - 1) * size);
  parallel(pool, s.heads * parts.parts, [&](int64_t task) {
    const int64_t head = task / parts.parts, part = task % parts.parts, begin = parts.begin(part), end = parts.begin(part + 1);
    const int64_t first = panels.begin(begin), keys = panels.begin(end) - first;
    const auto packed = memory<T>(keys * (s.width + s.value_width)), sums = zeros<T>(keys * (pitch + value_pitch));
    const T *own_k = k + head * s.keys * s.width, *own_v = v + head * s.keys * s.value_width;
    T *packed_v = packed.get() + keys * s.width, *by_v = sums.get() + keys * pitch;
    pack(own_k, s.width, panels, begin, end, packed.get());
    pack(own_v, s.value_width, panels, begin, end, packed_v);
    T* by_q = (part ? more.get() + (part - 1) * size : to.by_q) + head * s.queries * s.width;
    const int64_t query = head * s.queries;
    const Backward<T> b{begin,
                        end,
                        q + query * s.width,
                        own_k,
                        own_v,
                        y + query * s.value_width,
                        logs + query,
                        g + query * s.value_width,
                        packed.get(),
                        packed_v,
                        by_q,
                        sums.get(),
                        by_v,
                        to.of(head, s).by_score,
                        T(s.scale)};
    by_block<T>(0, s.queries, [&](auto vectors, int64_t from, int64_t count) {
      differentiate<T, vectors()>({s, panels, bias.of(head, s), bias.row, kept.of(head, s.keys), from, count}, b);
    });
    for (int64_t i = 0; i < keys; ++i) {
      std::copy_n(sums.get() + i * pitch, s.width, to.by_k + (head * s.keys + first + i) * s.width);
      std::copy_n(by_v + i * value_pitch, s.value_width, to.by_v + (head * s.keys + first + i) * s.value_width);
    }
  });
  if (parts.parts == 1) return;
  const Parts shares(size, (size + kTasks - 1) / kTasks);
  parallel(pool, shares.parts, [&](int64_t task) {
    for (int64_t part = 1; part < parts.parts; ++part)
      for (int64_t i = shares.begin(task); i < shares.begin(task + 1); ++i) to.by_q[i] += more[(part - 1) * size + i];
  });
}

// The gradient by scores is the fourth where there are so many.
ffi::Error gradient(Pool pool, In g, In y, In logs, In q, In k, In v, In bias, Bools mask, Out by_q, Out by_k, Out by_v,
                    ffi::RemainingRets rest, bool causal, double scale, double rate) {
  const Sizes s = sizes_of(q, v, causal, scale, rate);
  return by_type(q.element_type(), [&](auto zero) {
    using T = decltype(zero);
    auto of_scores = rest.get<In>(0);
    T* by_score = of_scores.has_value() ? data<T>(*of_scores) : nullptr;
    backward<T>(pool, s, data<T>(q), data<T>(k), data<T>(v), bias_of<T>(bias, s), kept_of<T>(mask, s), data<T>(y), data<T>(logs),
                data<T>(g), {data<T>(by_q), data<T>(by_k), data<T>(by_v), by_score});
  });
}

auto bound() {
  auto cotangents = ffi::Ffi::Bind().Ctx<Pool>().Arg<In>().Arg<In>().Arg<In>();
  return with_attributes(
      std::move(cotangents).Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<Bools>().Ret<In>().Ret<In>().Ret<In>().RemainingRets());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_attention_gradient, gradient, bound());

}  // namespace jnn::attention
