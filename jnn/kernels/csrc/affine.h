// Products of matrices that stand by rows, or by columns: c = a b^T.
#pragma once

#include <algorithm>
#include <cstdint>

#include "factors.h"
#include "matrices.h"
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"
#include "tasks.h"

namespace jnn::affine {

// Tiles that share a panel of the right factor at most.
constexpr int64_t kTilesAtOnce = kRegisters == 32 ? 8 : 12;
// For balance: with a quarter of them 1.0 to 1.11 of the time.
constexpr int64_t kSlabsAThread = 16;
// Terms of a sum that are added up before the next.
constexpr int64_t kDepth = 512, kDepthOfRows = 1024;
// Of the terms of a sum at most: not by threads, of which no result depends.
constexpr int64_t kMostParts = 8;
// Products of a dot that take as long as copying a number.
constexpr int64_t kDotWork = 8;
// Of up to so many sums, of so many terms at least, factors are not put in order.
constexpr int64_t kFewSums = 8192, kLeastDepth = 256;
// Nor of rows with so few others: 0.5 to 0.9 of the time.
constexpr int64_t kFewRows = 12;
// Of factors that are both across, those of so few rows are read as they stand, some terms at a time, so many at least in a part: 0.5 to
// 0.9 of the time.
constexpr int64_t kFewAcross = 16, kTermsAcross = 16, kLeastAcross = 128;
// A right factor of so many bytes stays near. Rows that begin at one place of a page drive each other out of the first cache.
constexpr int64_t kNear = 512 << 10, kPage = 4096;
// Products of fewer terms are made by one thread.
constexpr int64_t kAlone = 1 << 18;

// A factor (rows, terms) or, `across`, its transpose (terms, rows).
template <class T>
struct Factor {
  const T* data;
  int64_t rows;
  bool across;
};

// c[i][j] = bias[j] + sum over k of a[i][k] * b[j][k], by tiles of a that make slabs, and panels of b. An a that is across is put in order,
// and `totals[i]` are its sums.
template <class T>
class Product {
 public:
  Product(const Factor<T>& a, const Factor<T>& b, int64_t depth, int64_t threads, const T* bias, T* totals)
      : a_(a),
        b_(b),
        depth_(depth),
        pitch_(a.across ? std::min<int64_t>(a.rows, kMost) * depth + kLanes<T> : 0),
        tiles_(a.rows, a.across ? kMost : kStandingRows),
        slabs_(Parts::shared(tiles_.parts, tiles_at_once(threads), threads)),
        panels_{b.rows},
        past_(depth <= kDepth && b.rows % kLanes<T> == 0 && past_cache<T>(a.rows * b.rows)),
        bias_(bias, 1, panels_),
        totals_(totals) {}

  int64_t groups() const { return 1; }
  int64_t slabs() const { return slabs_.parts; }
  int64_t panels() const { return panels_.count(); }
  bool many() const { return a_.rows >= b_.rows; }
  int64_t left() const { return std::min(tiles_.parts, kTilesAtOnce) * pitch_; }
  int64_t right() const { return kTileColumns<T> * depth_; }

  void gather(int64_t slab, int64_t, const T* a, T* to) const {
    for (int64_t k = 0; k < depth_ && a_.across; k += kDepth)
      across(slabs_.begin(slab), slabs_.begin(slab + 1), k, std::min(kDepth, depth_ - k), a, to);
  }

  void order(int64_t panel, int64_t, const T* b, T* to) const {
    const int64_t first = panel * kTileColumns<T>, width = panels_.width(panel), count = panels_.outputs(panel);
    if (b_.across) return in_rows(b + first, b_.rows, depth_, count, width, to);
    for (int64_t j = 0; j < width; j += kLanes<T>) in_columns(b + (first + j) * depth_, depth_, count - j, depth_, to + j, width);
  }

  void multiply(int64_t slab, int64_t, const T* a, int64_t begin, int64_t end, const T* b, T* c) const {
    const int64_t first = slabs_.begin(slab), last = slabs_.begin(slab + 1);
    // Whole rows are written from end to end, if the right factor allows: 0.55 to 0.9 of the time.
    const bool near = (end - begin) * kTileColumns<T> * std::min(kDepth, depth_) * int64_t(sizeof(T)) <= kNear;
    const bool by_tile = near && !past_ && end - begin == panels() && b_.rows * int64_t(sizeof(T)) % kPage;
    const int64_t outer = by_tile ? last - first : end - begin, inner = by_tile ? end - begin : last - first;
    for (int64_t k = 0; k < depth_; k += kDepth)
      for (int64_t i = 0; i < outer; ++i)
        for (int64_t j = 0; j < inner; ++j) {
          const int64_t t = first + (by_tile ? i : j), panel = begin + (by_tile ? j : i);
          const T* left = a_.across ? a + (t - first) * pitch_ + k * tiles_.size(t) : a_.data + tiles_.begin(t) * depth_ + k;
          add(panel, t, k, {left, depth_}, b + (panel - begin) * right() + k * panels_.width(panel), c);
        }
  }

 private:
  static constexpr int kMost = kRowsOf<kTileVectors>;

  int64_t tiles_at_once(int64_t threads) const {
    return std::clamp((tiles_.parts - 1) / (kSlabsAThread * threads) + 1, int64_t{1}, kTilesAtOnce);
  }

  // Some terms of tiles, all of which stand in the same lines, and their sums. What is written behind a term is overwritten.
  void across(int64_t first, int64_t last, int64_t k, int64_t terms, const T* a, T* to) const {
    constexpr int kVectors = (kMost + kLanes<T> - 1) / kLanes<T>;
    Vector<T> sums[kTilesAtOnce][kVectors] = {};
    for (int64_t i = k; i < k + terms; ++i)
      for (int64_t t = first; t < last; ++t) {
        const int64_t count = tiles_.size(t);
        for (int v = 0; v * kLanes<T> < count; ++v) {
          const Vector<T> found = load_some(a + i * a_.rows + tiles_.begin(t) + v * kLanes<T>, count - v * kLanes<T>);
          store(to + (t - first) * pitch_ + i * count + v * kLanes<T>, found);
          sums[t - first][v] += found;
        }
      }
    for (int64_t t = first; t < last && totals_; ++t)
      for (int64_t i = 0; i < tiles_.size(t); ++i) {
        T& total = totals_[tiles_.begin(t) + i];
        total = (k ? total : T{0}) + sums[t - first][i / kLanes<T>][i % kLanes<T>];
      }
  }

  // The terms from the k-th on of a tile and a panel. Sums are made beside c for panels that are not whole, and where they are all that is
  // written there, past the cache.
  void add(int64_t panel, int64_t t, int64_t k, Left<T> left, const T* right, T* c) const {
    const int64_t first = panel * kTileColumns<T>, width = panels_.width(panel), count = panels_.outputs(panel), rows = tiles_.size(t);
    T* to = c + tiles_.begin(t) * b_.rows + first;
    T beside[kMost * kTileColumns<T>];
    T* sums = count == width && !past_ ? to : beside;
    const int64_t stride = sums == to ? b_.rows : width;
    for (int64_t i = 0; i < rows && k && sums != to; ++i) std::copy_n(to + i * b_.rows, count, sums + i * stride);
    const Start<T> start = k ? Start<T>{sums, stride} : bias_.start(0, panel);
    const auto& narrow = a_.across ? kNarrowPanels<T, 1> : kNarrowPanels<T, 0>;
    const auto& wide = a_.across ? kPanels<T, kTileVectors, 1> : kPanels<T, kTileVectors, 0>;
    const auto kernel = width == kLanes<T> ? narrow[rows - 1] : wide[rows - 1];
    kernel(std::min(kDepth, depth_ - k), left, right, start, sums, stride);
    for (int64_t i = 0; i < rows && sums != to; ++i) {
      if (past_ && count == kTileColumns<T>)
        for (int j = 0; j < kTileVectors; ++j) stream(to + i * b_.rows + j * kLanes<T>, load(sums + i * stride + j * kLanes<T>));
      else std::copy_n(sums + i * stride, count, to + i * b_.rows);
    }
  }

  const Factor<T> a_, b_;
  const int64_t depth_, pitch_;
  const Parts tiles_, slabs_;
  const Panels<T> panels_;
  const bool past_;
  const Bias<T> bias_;
  T* totals_;
};

// c[i][j] = bias[j] + sum over k of a[i][k] * b[j][k], of rows as they stand: for products of so few that putting them in order takes
// longer.
template <class T>
void multiply_rows(Pool& pool, const Factor<T>& a, const Factor<T>& b, int64_t depth, T* c, const T* bias) {
  const int64_t rest = depth % kLanes<T>, vectors = depth - rest;
  int32_t offsets[kMostDots];
  for (int j = 0; j < kMostDots; ++j) offsets[j] = j * depth;
  // What the larger factor has is read once, with all of the smaller at hand.
  const bool many = a.rows >= b.rows;
  const Parts rows(a.rows, kMostDots), columns(b.rows, kMostDots), &outer = many ? rows : columns, &inner = many ? columns : rows;
  by_task(pool, outer.parts, kMostDots * std::min(a.rows, b.rows) * depth / kDotWork, 1, [&](int64_t begin, int64_t end) {
    const auto each = [&](const auto& run) {
      for (int64_t o = begin; o < end; ++o)
        for (int64_t i = 0; i < inner.parts; ++i) many ? run(o, i) : run(i, o);
    };
    each([&](int64_t r, int64_t s) {
      for (int64_t i = rows.begin(r); i < rows.begin(r + 1); ++i)
        for (int64_t j = columns.begin(s); j < columns.begin(s + 1); ++j) {
          T sum = bias ? bias[j] : T{0};
          for (int64_t k = vectors; k < depth; ++k) sum += a.data[i * depth + k] * b.data[j * depth + k];
          c[i * b.rows + j] = sum;
        }
    });
    for (int64_t k = 0; k < vectors; k += kDepthOfRows)
      each([&](int64_t r, int64_t s) {
        const int64_t i = rows.begin(r), j = columns.begin(s);
        kDots<T>[(rows.size(r) - 1) * kMostDots + columns.size(s) - 1](std::min(kDepthOfRows, vectors - k), a.data + i* depth + k, depth,
                                                                       b.data + j* depth + k, offsets, c + i* b.rows + j, b.rows);
      });
  });
}

// c[i][j] = sum over k of a[k][i] * b[k][j], `pitch` apart, and the sums of a: of factors as they stand, but for columns that make no whole
// tile.
template <class T>
void multiply_across(const Factor<T>& a, const Factor<T>& b, int64_t depth, T* c, int64_t pitch, T* totals) {
  const Parts rows(a.rows, kMostRows);
  const int64_t width = kTileColumns<T>, whole = b.rows / width * width;
  T edge[kTermsAcross * kTileColumns<T>];
  int32_t apart[kTermsAcross], packed[kTermsAcross];
  for (int64_t k = 0; k < kTermsAcross; ++k) apart[k] = k * b.rows, packed[k] = k * width;
  if (totals) std::fill_n(totals, a.rows, T{0});
  for (int64_t k = 0; k < depth; k += kTermsAcross) {
    const int64_t terms = std::min(kTermsAcross, depth - k);
    const T *left = a.data + k * a.rows, *right = b.data + k * b.rows;
    if (whole < b.rows) in_rows(right + whole, b.rows, terms, b.rows - whole, width, edge);
    for (int64_t j = 0; j < b.rows; j += width) {
      for (int64_t i = 0; i < terms; ++i)
        for (int v = 1; v <= kTileVectors; ++v) __builtin_prefetch(right + i * b.rows + std::min(j + width + v * kLanes<T>, b.rows) - 1);
      for (int64_t r = 0; r < rows.parts; ++r)
        kTiles<T>[rows.size(r) - 1](terms, left + rows.begin(r), a.rows, j < whole ? right + j : edge, j < whole ? apart : packed,
                                    c + rows.begin(r) * pitch + j, pitch, k > 0, nullptr);
    }
    if (!totals) continue;
    // Some terms' sums by themselves: sums of few err less.
    T own[kFewAcross];
    std::copy_n(left, a.rows, own);
    for (int64_t i = 1; i < terms; ++i) add(a.rows, T{1}, left + i * a.rows, own);
    add(a.rows, T{1}, own, totals);
  }
}

// c and the sums of a, of factors that are both across, by parts of the terms, which are added up.
template <class T>
void multiply_terms(Pool& pool, const Factor<T>& a, const Factor<T>& b, int64_t depth, T* c, T* totals) {
  const bool few = a.rows <= kFewAcross;
  const Parts parts(depth, std::max(few ? kLeastAcross : kDepth, depth / kMostParts));
  const int64_t pitch = few ? Panels<T>{b.rows}.count() * kTileColumns<T> : b.rows, size = a.rows * pitch, own = size + a.rows;
  const Memory<T> sums = memory<T>(parts.parts * own);
  parallel(pool, parts.parts, [&](int64_t part) {
    const int64_t begin = parts.begin(part);
    const Factor<T> left{a.data + begin * a.rows, a.rows, true}, right{b.data + begin * b.rows, b.rows, true};
    T *to = sums.get() + part * own, *own_totals = totals ? to + size : nullptr;
    if (few) return multiply_across(left, right, parts.size(part), to, pitch, own_totals);
    run(pool, Product<T>(left, right, parts.size(part), 1, nullptr, own_totals), left.data, right.data, to, true);
  });
  const auto sum_up = [&](int64_t from, int64_t count, T* to) {
    std::copy_n(sums.get() + from, count, to);
    for (int64_t part = 1; part < parts.parts; ++part) add(count, T{1}, sums.get() + part * own + from, to);
  };
  for (int64_t i = 0; i < a.rows; ++i) sum_up(i * pitch, b.rows, c + i * b.rows);
  if (totals) sum_up(size, a.rows, totals);
}

// Whether products of rows with so many others are sums of rows as they stand.
inline bool by_rows(int64_t rows, int64_t others, int64_t depth) {
  return (rows * others <= kFewSums || others <= kFewRows) && depth >= kLeastDepth;
}

// Whether one thread makes products of so many rows with others.
inline bool alone(double rows, double others, double depth) { return rows * others * depth < kAlone; }

template <class T>
void multiply(Pool& pool, const Factor<T>& a, const Factor<T>& b, int64_t depth, T* c, const T* bias, T* totals) {
  const int64_t size = a.rows * b.rows;
  if (!a.across && !b.across && by_rows(a.rows, b.rows, depth)) return multiply_rows(pool, a, b, depth, c, bias);
  const bool few = a.rows <= kFewAcross;
  if (a.across && b.across && size <= (few ? 16 : 4) * kFewSums && depth >= 2 * (few ? kLeastAcross : kDepth))
    return multiply_terms(pool, a, b, depth, c, totals);
  const bool one = alone(a.rows, b.rows, depth);
  run(pool, Product<T>(a, b, depth, one ? 1 : pool.num_threads(), bias, totals), a.data, b.data, c, one);
}

}  // namespace jnn::affine
