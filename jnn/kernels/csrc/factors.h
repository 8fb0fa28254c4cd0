// Products of what is gathered from inputs with weights: either is put in order before it is used.
#pragma once

#include <algorithm>
#include <cstdint>

#include "memory.h"
#include "parallel.h"
#include "products.h"

namespace jnn {

// Weights that a task has in order at once, in bytes: as many panels as stay in its core's cache, with a slab, while all slabs go by.
constexpr int64_t kOrderedAtOnce = 512 << 10;

// Runs a form of convolutions, which has `groups()` of `slabs()` of places and of `panels()` of outputs, and
//   gather(slab, group, x, to): what a slab reads, `left()` numbers;
//   order(panel, group, w, to): a panel's weights, `right()` numbers;
//   multiply(slab, group, left, begin, end, right, y): the outputs of a slab, of some panels.
// Of both factors the one that is less in all, weights where there are `many()` places, is put in order for all tasks, and the other for
// each task its own; slabs too few for all threads share weights out. One thread does it all where it is `alone`.
template <class T, class Form>
void run(Pool& pool, const Form& form, const T* x, const T* w, T* y, bool alone = false) {
  const int64_t groups = form.groups(), slabs = form.slabs(), panels = form.panels(), left = form.left(), right = form.right();
  const auto each = [&](int64_t tasks, const auto& work) { parallel(pool, tasks, work, alone); };
  if (form.many() && (alone || groups * slabs >= pool.num_threads())) {
    const auto weights = memory<T>(groups * panels * right);
    each(groups * panels, [&](int64_t task) { form.order(task % panels, task / panels, w, weights.get() + task * right); });
    each(groups * slabs, [&](int64_t task) {
      const int64_t slab = task / groups, group = task % groups;
      const auto own = memory<T>(left);
      form.gather(slab, group, x, own.get());
      form.multiply(slab, group, own.get(), 0, panels, weights.get() + group * panels * right, y);
    });
  } else {
    const auto places = memory<T>(groups * slabs * left);
    if (left) each(groups * slabs, [&](int64_t task) { form.gather(task % slabs, task / slabs, x, places.get() + task * left); });
    const int64_t most = std::min(kOrderedAtOnce / (right * int64_t(sizeof(T))), groups * panels / (kTasksAThread * pool.num_threads()));
    const Parts shares = Parts::shared(panels, std::max(int64_t{1}, most), groups % pool.num_threads() ? pool.num_threads() : 1);
    each(groups * shares.parts, [&](int64_t task) {
      const int64_t group = task / shares.parts, begin = shares.begin(task % shares.parts), end = shares.begin(task % shares.parts + 1);
      const auto own = memory<T>((end - begin) * right);
      for (int64_t panel = begin; panel < end; ++panel) form.order(panel, group, w, own.get() + (panel - begin) * right);
      for (int64_t s = 0; s < slabs; ++s) form.multiply(s, group, places.get() + (group * slabs + s) * left, begin, end, own.get(), y);
    });
  }
}

}  // namespace jnn
