// Attention by blocks of queries and of keys, whose scores stay in the cache, and its gradients.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "buffers.h"
#include "functions.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"
#include "transpose.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

// Panels of kMostRows keys whose scores are held at once.
constexpr int64_t kPanelsAtOnce = 8;
// The tasks of a gradient, which sums up their parts, are so many on any machine.
constexpr int64_t kTasks = 16;

// So few queries are taken one by one, for which keys are read as they lie.
constexpr int64_t kFew = 8;

// Queries stand side by side in so many vectors, and what belongs to them, such as their scores, in rows of that width.
template <class T, int vectors>
constexpr int64_t kQueries = vectors * kLanes<T>;

// c[i * c_pitch + j] = (add ? c[...] : 0) + sum over k of a[k * a_step + i * apart] * b[k * b_step + j] for i < rows and j in `vectors`.
template <class T, int vectors, int apart, int rows>
void product(int64_t depth, const T* a, int64_t a_step, const T* b, int64_t b_step, T* c, int64_t c_pitch, bool add) {
  Vector<T> sums[rows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) sums[i][j] = add ? load(c + i * c_pitch + j * kLanes<T>) : Vector<T>{};
  for (int64_t k = 0; k < depth; ++k, a += a_step, b += b_step) {
    Vector<T> right[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) right[j] = load(b + j * kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Vector<T> factor = broadcast(a[i * apart]);
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) sums[i][j] += factor * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) store(c + i * c_pitch + j * kLanes<T>, sums[i][j]);
}

template <class T>
using Product = void (*)(int64_t, const T*, int64_t, const T*, int64_t, T*, int64_t, bool);

template <class T, int vectors, int apart, size_t... i>
constexpr std::array<Product<T>, sizeof...(i)> products_of(std::index_sequence<i...>) {
  return {product<T, vectors, apart, i + 1>...};
}
// By rows - 1.
template <class T, int vectors, int apart>
inline constexpr auto kProducts = products_of<T, vectors, apart>(std::make_index_sequence<kMostRows>());

// What of attention is no array.
struct Sizes {
  std::vector<int64_t> lead;
  int64_t heads, queries, keys, width, value_width;
  bool causal;
  double scale, rate;
};

// Which weights are kept, by key and query of a head, and what they are multiplied by; all are where there is no mask.
template <class T>
struct Kept {
  const uint8_t* data;
  T factor;
  int64_t queries;

  Kept of(int64_t head, int64_t keys) const { return {data ? data + head * keys * queries : nullptr, factor, queries}; }
  T at(int64_t key, int64_t query) const { return !data ? T{1} : data[key * queries + query] ? factor : T{0}; }
  // `count` neighbouring queries, no more than lanes.
  Vector<T> load(int64_t key, int64_t query, int64_t count) const {
    typedef uint8_t Bytes __attribute__((vector_size(kLanes<T>)));
    Bytes bytes{};
    const uint8_t* from = data + key * queries + query;
    if (count >= kLanes<T>) std::memcpy(&bytes, from, sizeof bytes);
    else if (count > 0) std::memcpy(&bytes, from, count);
    return __builtin_convertvector(bytes, Vector<T>) * factor;
  }
};

// What is added to the scores, (..., queries or 1, keys); nothing where it is not there.
template <class T>
struct Bias {
  const T* data;
  std::vector<int64_t> strides;
  int64_t row;

  Bias(const T* data, ffi::AnyBuffer::Dimensions sizes, const Sizes& all) : data(data), strides(all.lead.size()), row(0) {
    if (!data) return;
    int64_t stride = sizes.back();
    row = sizes[sizes.size() - 2] > 1 ? stride : 0;
    stride *= sizes[sizes.size() - 2];
    for (size_t back = 1; back <= all.lead.size() && back + 2 <= sizes.size(); ++back) {
      const int64_t size = sizes[sizes.size() - 2 - back];
      strides[all.lead.size() - back] = size > 1 ? stride : 0;
      stride *= size;
    }
  }
  const T* of(int64_t head, const Sizes& all) const {
    if (!data) return nullptr;
    int64_t offset = 0;
    for (size_t d = all.lead.size(); d-- > 0; head /= all.lead[d]) offset += head % all.lead[d] * strides[d];
    return data + offset;
  }
};

// Rows of a matrix in the order in which products read them: by panel of up to kMostRows, by column.
template <class T>
void pack(const T* from, int64_t width, const Parts& panels, int64_t begin, int64_t end, T* to) {
  for (int64_t p = begin; p < end; ++p) {
    transpose(from + panels.begin(p) * width, width, panels.size(p), width, to, panels.size(p));
    to += panels.size(p) * width;
  }
}

// The rows of (count, width), times `scale`, as columns of (width, kQueries); missing ones are zeros.
template <class T, int vectors>
void turn(const T* from, int64_t width, int64_t count, T scale, T* to) {
  constexpr int64_t wide = kQueries<T, vectors>;
  transpose(from, width, count, width, to, wide);
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < count; ++j) to[i * wide + j] *= scale;
    std::fill(to + i * wide + count, to + (i + 1) * wide, T{0});
  }
}

// Queries of one head, of which the first is at `first`.
template <class T>
struct Queries {
  const Sizes& sizes;
  const Parts& panels;
  const T* bias;
  int64_t bias_row;
  Kept<T> kept;
  int64_t first, count;

  // What a weight is multiplied by, for the queries of a vector.
  Vector<T> factor(int64_t key, int vector) const { return kept.load(key, first + vector * kLanes<T>, count - vector * kLanes<T>); }
  int64_t seen() const { return sizes.causal ? std::min(sizes.keys, first + count) : sizes.keys; }
};

// The scores of panels from begin to end of keys, by key, for queries of (width, kQueries).
template <class T, int vectors>
void scores(const Queries<T>& q, int64_t begin, int64_t end, const T* packed, const T* queries, T* turned, T* to) {
  constexpr int64_t wide = kQueries<T, vectors>;
  const int64_t width = q.sizes.width, first = q.panels.begin(begin), last = q.panels.begin(end);
  for (int64_t p = begin; p < end; ++p) {
    const int64_t rows = q.panels.size(p), at = q.panels.begin(p);
    kProducts<T, vectors, 1>[rows - 1](width, packed + at* width, rows, queries, wide, to + (at - first)* wide, wide, false);
  }
  if (q.bias && q.bias_row) transpose(q.bias + q.first * q.bias_row + first, q.bias_row, q.count, last - first, turned, wide);
  Vector<T> lanes[vectors];
  for (int64_t i = 0; i < wide; ++i) lanes[i / kLanes<T>][i % kLanes<T>] = T(i);
  for (int64_t key = first; key < last; ++key) {
    T* row = to + (key - first) * wide;
    const bool ahead = q.sizes.causal && key > q.first;
    if (!q.bias && !ahead) continue;
    for (int j = 0; j < vectors; ++j) {
      Vector<T> s = load(row + j * kLanes<T>);
      if (q.bias) s += q.bias_row ? load(turned + (key - first) * wide + j * kLanes<T>) : broadcast(q.bias[key]);
      if (ahead) s = select<T>(lanes[j] < T(key - q.first), broadcast(-std::numeric_limits<T>::infinity()), s);
      store(row + j * kLanes<T>, s);
    }
  }
}

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

// Adds (keys of (kQueries) weights)^T (keys, width) to (width, kQueries).
template <class T, int vectors>
void add_rows(int64_t keys, const T* weights, const T* rows, int64_t width, T* to) {
  constexpr int64_t wide = kQueries<T, vectors>;
  const Parts parts(width, kMostRows);
  for (int64_t p = 0; p < parts.parts; ++p)
    kProducts<T, vectors, 1>[parts.size(p) - 1](keys, rows + parts.begin(p), width, weights, wide, to + parts.begin(p)* wide, wide, true);
}

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

// The weights of all keys for one query, and the logarithm of what their exponentials summed up to.
template <class T>
T weigh(const Sizes& s, int64_t query, const T* q, const T* k, const T* bias, T* weights) {
  constexpr T least = -std::numeric_limits<T>::infinity();
  const int64_t keys = s.causal ? std::min(s.keys, query + 1) : s.keys;
  T most = least, total = 0;
  for (int64_t i = 0; i < keys; ++i) {
    weights[i] = dot(s.width, q, k + i * s.width) + (bias ? bias[i] : T{0});
    most = weights[i] > most ? weights[i] : most;
  }
  std::fill(weights + keys, weights + s.keys, least);
  const T base = most == least ? T{0} : most;
  for (int64_t i = 0; i < s.keys; i += kLanes<T>) {
    const Mask inside = between(0, std::min<int64_t>(kLanes<T>, s.keys - i));
    store_masked(weights + i, exp<T>(load_masked(weights + i, inside, 1) - base), inside, 1);
  }
  for (int64_t i = 0; i < keys; ++i) total += weights[i];
  if (most == least && bias) total = 1;
  for (int64_t i = 0; i < keys; ++i) weights[i] /= total;
  return base + std::log(total);
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

// Calls run with the first query and the number of each block of up to two vectors, and how many vectors it takes.
template <class T, class Run>
void by_block(int64_t begin, int64_t end, const Run& run) {
  for (int64_t first = begin; first < end; first += kQueries<T, 2>) {
    const int64_t count = std::min(kQueries<T, 2>, end - first);
    if (count > kLanes<T>) run(std::integral_constant<int, 2>(), first, count);
    else run(std::integral_constant<int, 1>(), first, count);
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

Sizes sizes_of(const ffi::AnyBuffer& q, const ffi::AnyBuffer& v, bool causal, double scale, double rate) {
  const auto all = q.dimensions(), values = v.dimensions();
  const size_t rank = all.size();
  Sizes s{{all.begin(), all.end() - 2}, 1, all[rank - 2], values[rank - 2], all[rank - 1], values[rank - 1], causal, scale, rate};
  for (int64_t size : s.lead) s.heads *= size;
  return s;
}

// A bias or a mask of one dimension is none.
template <class T>
Bias<T> bias_of(const ffi::AnyBuffer& bias, const Sizes& s) {
  return Bias<T>(bias.dimensions().size() > 1 ? data<T>(bias) : nullptr, bias.dimensions(), s);
}

using Mask = ffi::Buffer<ffi::PRED>;

template <class T>
Kept<T> kept_of(const Mask& mask, const Sizes& s) {
  const auto* all = reinterpret_cast<const uint8_t*>(mask.typed_data());
  return {mask.dimensions().size() > 1 ? all : nullptr, static_cast<T>(1 / (1 - s.rate)), s.queries};
}

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

ffi::Error attention(Pool pool, In q, In k, In v, In bias, Mask mask, Out y, Out logs, bool causal, double scale, double rate) {
  const Sizes s = sizes_of(q, v, causal, scale, rate);
  return by_type(q.element_type(), [&](auto zero) {
    using T = decltype(zero);
    forward<T>(pool, s, data<T>(q), data<T>(k), data<T>(v), bias_of<T>(bias, s), kept_of<T>(mask, s), data<T>(y), data<T>(logs));
  });
}

// The gradient by scores is the fourth where there are so many.
ffi::Error gradient(Pool pool, In g, In y, In logs, In q, In k, In v, In bias, Mask mask, Out by_q, Out by_k, Out by_v,
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

// What both functions end with.
template <class Bound>
auto with_attributes(Bound bound) {
  return std::move(bound).template Attr<bool>("causal").template Attr<double>("scale").template Attr<double>("rate");
}

auto bound() {
  return with_attributes(ffi::Ffi::Bind().Ctx<Pool>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<Mask>().Ret<In>().Ret<In>());
}

auto gradient_bound() {
  auto cotangents = ffi::Ffi::Bind().Ctx<Pool>().Arg<In>().Arg<In>().Arg<In>();
  return with_attributes(
      std::move(cotangents).Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<Mask>().Ret<In>().Ret<In>().Ret<In>().RemainingRets());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_attention, attention, bound());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_attention_gradient, gradient, gradient_bound());

}  // namespace jnn
