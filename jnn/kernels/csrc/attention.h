// What attention and its gradient share: blocks of queries and panels of keys, whose scores stay in the cache.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
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

namespace jnn::attention {

// Panels of kMostRows keys whose scores are held at once.
constexpr int64_t kPanelsAtOnce = 8;
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

// Adds (keys of (kQueries) weights)^T (keys, width) to (width, kQueries).
template <class T, int vectors>
void add_rows(int64_t keys, const T* weights, const T* rows, int64_t width, T* to) {
  constexpr int64_t wide = kQueries<T, vectors>;
  const Parts parts(width, kMostRows);
  for (int64_t p = 0; p < parts.parts; ++p)
    kProducts<T, vectors, 1>[parts.size(p) - 1](keys, rows + parts.begin(p), width, weights, wide, to + parts.begin(p)* wide, wide, true);
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

// Calls run with the first query and the number of each block of up to two vectors, and how many vectors it takes.
template <class T, class Run>
void by_block(int64_t begin, int64_t end, const Run& run) {
  for (int64_t first = begin; first < end; first += kQueries<T, 2>) {
    const int64_t count = std::min(kQueries<T, 2>, end - first);
    if (count > kLanes<T>) run(std::integral_constant<int, 2>(), first, count);
    else run(std::integral_constant<int, 1>(), first, count);
  }
}

inline Sizes sizes_of(const ffi::AnyBuffer& q, const ffi::AnyBuffer& v, bool causal, double scale, double rate) {
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

using Bools = ffi::Buffer<ffi::PRED>;

template <class T>
Kept<T> kept_of(const Bools& mask, const Sizes& s) {
  const auto* all = reinterpret_cast<const uint8_t*>(mask.typed_data());
  return {mask.dimensions().size() > 1 ? all : nullptr, static_cast<T>(1 / (1 - s.rate)), s.queries};
}

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

// What both functions end with.
template <class Bound>
auto with_attributes(Bound bound) {
  return std::move(bound).template Attr<bool>("causal").template Attr<double>("scale").template Attr<double>("rate");
}

}  // namespace jnn::attention
