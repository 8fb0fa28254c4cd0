// The cells of recurrent layers, on vectors of units.
#pragma once

#include <cstdint>

#include "functions.h"
#include "vector.h"

namespace jnn {

// A cell has `gates` rows of each weight for a unit and makes them `lanes` numbers. It keeps lane lane_of[s] in slot s: the input's
// product adds to the first slots, the state's to those from `first` on. So many vectors of units, `units`, are computed at a time.
//
// begin and end make of what was added up the new state, in two loops over a batch, for functions of functions would wait for each other.
// The slots then hold what backward needs. backward takes lanes in their order, the
// state before and after, the gradient by the state, and gives that by the lanes and what of it goes to the state before at once.
template <class T>
struct Lstm {
  using V = Vector<T>;
  static constexpr int gates = 4, lanes = 4, first = 0, units = 1, lane_of[] = {0, 1, 2, 3};
  static constexpr bool records = true, remembers = true;

  static void begin(T* slots, T* c) {
    const V i = sigmoid<T>(slot(slots, 0)), f = sigmoid<T>(slot(slots, 1)), g = tanh<T>(slot(slots, 2));
    store(slots, i);
    store(slots + kLanes<T>, f);
    store(slots + 2 * kLanes<T>, g);
    store(slots + 3 * kLanes<T>, sigmoid<T>(slot(slots, 3)));
    store(c, f * load(c) + i * g);
  }

  static V end(T* slots, V, V c) { return slot(slots, 3) * tanh<T>(c); }

  static V backward(const V* lane, V, V, V c_before, V c, V dh, V& dc, V* slopes) {
    const V i = lane[0], f = lane[1], g = lane[2], o = lane[3], y = tanh<T>(c);
    dc += dh * o * (T{1} - y * y);
    slopes[0] = dc * g * i * (T{1} - i);
    slopes[1] = dc * c_before * f * (T{1} - f);
    slopes[2] = dc * i * (T{1} - g * g);
    slopes[3] = dh * y * o * (T{1} - o);
    dc *= f;
    return V{};
  }

 private:
  static V slot(const T* slots, int at) { return load(slots + at * kLanes<T>); }
};

template <class T>
struct Gru {
  using V = Vector<T>;
  // Lanes r, z, n and u, the state's share of n.
  static constexpr int gates = 3, lanes = 4, first = 1, units = 1, lane_of[] = {2, 0, 1, 3};
  static constexpr bool records = true, remembers = false;

  static void begin(T* slots, T*) {
    store(slots + kLanes<T>, sigmoid<T>(load(slots + kLanes<T>)));
    store(slots + 2 * kLanes<T>, sigmoid<T>(load(slots + 2 * kLanes<T>)));
  }

  static V end(T* slots, V h, V) {
    const V n = tanh<T>(load(slots) + load(slots + kLanes<T>) * load(slots + 3 * kLanes<T>));
    store(slots, n);
    return n + load(slots + 2 * kLanes<T>) * (h - n);
  }

  static V backward(const V* lane, V h_before, V, V, V, V dh, V&, V* slopes) {
    const V r = lane[0], z = lane[1], n = lane[2], u = lane[3];
    slopes[2] = dh * (T{1} - z) * (T{1} - n * n);
    slopes[0] = slopes[2] * u * r * (T{1} - r);
    slopes[1] = dh * (h_before - n) * z * (T{1} - z);
    slopes[3] = slopes[2] * r;
    return dh * z;
  }
};

template <class T, bool relu>
struct Rnn {
  using V = Vector<T>;
  static constexpr int gates = 1, lanes = 1, first = 0, units = 2, lane_of[] = {0};
  static constexpr bool records = false, remembers = false;

  static void begin(T*, T*) {}

  static V end(T* slots, V, V) {
    const V a = load(slots);
    return relu ? select<T>(a <= T{0}, V{}, a) : tanh<T>(a);
  }

  static V backward(const V*, V, V h, V, V, V dh, V&, V* slopes) {
    slopes[0] = relu ? select<T>(h <= T{0}, V{}, dh) : dh * (T{1} - h * h);
    return V{};
  }
};

}  // namespace jnn
