// Affine maps, y = x w^T + bias, and their gradients.

#include <cstdint>

#include "affine.h"
#include "buffers.h"
#include "parallel.h"

namespace jnn {
namespace {

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

// y (n, outputs) of x (n, inputs), w (outputs, inputs) and, where there is one, a bias (outputs).
ffi::Error linear(Pool pool, In x, In w, ffi::RemainingArgs bias, Out y) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t depth = x.dimensions()[1];
    affine::multiply<T>(pool, {data<T>(x), x.dimensions()[0], false}, {data<T>(w), w.dimensions()[0], false}, depth, data<T>(y),
                        given<T>(bias), nullptr);
  });
}

// The gradient by x, for g, that of y.
ffi::Error linear_by_input(Pool pool, In g, In w, Out slope) {
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t depth = w.dimensions()[0];
    affine::multiply<T>(pool, {data<T>(g), g.dimensions()[0], false}, {data<T>(w), w.dimensions()[1], true}, depth, data<T>(slope), nullptr,
                        nullptr);
  });
}

// The gradients by w and, where it is wanted, by the bias.
ffi::Error linear_by_weight(Pool pool, In g, In x, Out slope, ffi::RemainingRets by_bias) {
  return by_type(g.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t depth = g.dimensions()[0];
    T* totals = nullptr;
    if (by_bias.size()) {
      Out total = *by_bias.get<ffi::AnyBuffer>(0);
      totals = data<T>(total);
    }
    affine::multiply<T>(pool, {data<T>(g), g.dimensions()[1], true}, {data<T>(x), x.dimensions()[1], true}, depth, data<T>(slope), nullptr,
                        totals);
  });
}

auto bound() { return ffi::Ffi::Bind().Ctx<Pool>().Arg<In>().Arg<In>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_linear, linear, bound().RemainingArgs().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_linear_by_input, linear_by_input, bound().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jnn_linear_by_weight, linear_by_weight, bound().Ret<In>().RemainingRets());

}  // namespace jnn
