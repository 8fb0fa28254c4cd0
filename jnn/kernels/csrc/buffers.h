// What the program that calls hands over.
#pragma once

#include "xla/ffi/api/ffi.h"

namespace jnn {

namespace ffi = xla::ffi;

template <class T>
T* data(ffi::Result<ffi::AnyBuffer>& buffer) {
  return reinterpret_cast<T*>(buffer->untyped_data());
}

template <class T>
const T* data(const ffi::AnyBuffer& buffer) {
  return reinterpret_cast<const T*>(buffer.untyped_data());
}

// What is handed over in the end, where it is.
template <class T>
const T* given(ffi::RemainingArgs rest) {
  return rest.size() ? data<T>(*rest.get<ffi::AnyBuffer>(0)) : nullptr;
}

// Calls run with a zero of the type.
template <class Run>
ffi::Error by_type(ffi::DataType type, const Run& run) {
  if (type == ffi::F32) return run(float{}), ffi::Error::Success();
  if (type == ffi::F64) return run(double{}), ffi::Error::Success();
  return ffi::Error::InvalidArgument("jnn: neither float32 nor float64");
}

}  // namespace jnn
