// What the calls for a recurrent layer in one direction share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffers.h"
#include "cells.h"
#include "matrices.h"

namespace jnn {

// Vectors that `count` units make.
template <class T>
constexpr int64_t vectors_of(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T>;
}

template <class T>
constexpr int64_t padded(int64_t count) {
  return vectors_of<T>(count) * kLanes<T>;
}

// The arrays of a layer. The output has the hidden size, or else that of the projection. What is not there is null.
template <class T>
struct Layer {
  int64_t steps, batch, input, hidden, output;
  bool reverse;
  const T *x, *by_input, *by_state, *h, *c = nullptr, *input_bias = nullptr, *state_bias = nullptr, *projection = nullptr, *valid = nullptr;

  // Of the `step`-th step.
  int64_t time(int64_t step) const { return reverse ? steps - 1 - step : step; }
  bool is_valid(int64_t time, int64_t n) const { return !valid || valid[time * batch + n] != 0; }
  bool any_valid(int64_t time, int64_t begin, int64_t rows) const {
    return !valid || std::any_of(valid + time * batch + begin, valid + time * batch + begin + rows, [](T v) { return v != 0; });
  }
};

// Arrays in their order.
template <class Buffers, class T>
class Reader {
 public:
  explicit Reader(Buffers& buffers, size_t at = 0) : buffers_(buffers), at_(at) {}
  auto next() { return buffers_.template get<ffi::AnyBuffer>(at_++).value(); }
  T* array() {
    auto buffer = next();
    if constexpr (std::is_const_v<T>) return data<std::remove_const_t<T>>(buffer);
    else return data<T>(buffer);
  }
  T* array_if(bool there) { return there ? array() : nullptr; }
  size_t at() const { return at_; }

 private:
  Buffers& buffers_;
  size_t at_;
};

// What of a layer is no array.
struct Options {
  int64_t mode;
  bool reverse, biased, projected, masked;
};

// The layer whose arrays begin at the `at`-th argument.
template <class T, class Cell>
Layer<T> layer_of(ffi::RemainingArgs& arguments, size_t at, const Options& options) {
  Reader<ffi::RemainingArgs, const T> read(arguments, at);
  const ffi::AnyBuffer x = read.next(), by_input = read.next(), by_state = read.next(), h = read.next();
  Layer<T> layer{};
  layer.steps = x.dimensions()[0], layer.batch = x.dimensions()[1], layer.input = x.dimensions()[2];
  layer.hidden = by_input.dimensions()[0] / Cell::gates, layer.output = h.dimensions()[1];
  layer.reverse = options.reverse;
  layer.x = data<T>(x), layer.by_input = data<T>(by_input), layer.by_state = data<T>(by_state), layer.h = data<T>(h);
  layer.c = read.array_if(Cell::remembers);
  layer.input_bias = read.array_if(options.biased);
  layer.state_bias = read.array_if(options.biased);
  layer.projection = read.array_if(options.projected);
  layer.valid = read.array_if(options.masked);
  return layer;
}

// Calls run with a cell of the mode, whose number is that of `MODES` in recurrence.py.
template <class T, class Run>
void by_mode(int64_t mode, const Run& run) {
  if (mode == 0) run(Rnn<T, false>{});
  if (mode == 1) run(Rnn<T, true>{});
  if (mode == 2) run(Lstm<T>{});
  if (mode == 3) run(Gru<T>{});
}

// Work in stages: what each does, with a number of its own, and its tasks.
template <class Kind>
struct Plan {
  struct Stage {
    Kind kind;
    int64_t index;
  };
  std::vector<Stage> stages;
  std::vector<int64_t> tasks;

  void add(Kind kind, int64_t index, int64_t count) {
    stages.push_back({kind, index});
    tasks.push_back(count);
  }
};

}  // namespace jnn
