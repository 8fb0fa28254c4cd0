// Random choices: the numbers of jax.random's generator threefry2x32, compared with a bound.
// Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, 2011.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "functions.h"
#include "parallel.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace jnn {
namespace {

using Words = Vector<Bits<float>>;
using Signs = Vector<int32_t>;
typedef int8_t Bytes __attribute__((vector_size(kLanes<float>)));

// So many vectors are computed side by side, and so many choices by a task.
constexpr int kAtOnce = 4;
constexpr int64_t kChoicesATask = 1 << 14;
// Of a word the bits that make a float between 0 and 1, and the rest.
constexpr int kDigits = 23, kRest = 9;

struct Key {
  std::array<uint32_t, 3> parts;
  Key(uint32_t first, uint32_t second) : parts{first, second, first ^ second ^ 0x1BD11BDA} {}
};

// Four rounds, and the key's parts for the group of that number.
template <int group>
inline void rounds(const Key& key, Words (&left)[kAtOnce], Words (&right)[kAtOnce]) {
  constexpr int turns[] = {group % 2 ? 13 : 17, group % 2 ? 15 : 29, group % 2 ? 26 : 16, group % 2 ? 6 : 24};
#pragma GCC unroll 4
  for (int turn : turns) {
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; ++i) {
      left[i] += right[i];
      right[i] = ((right[i] << turn) | (right[i] >> (32 - turn))) ^ left[i];
    }
  }
  for (int i = 0; i < kAtOnce; ++i) {
    left[i] += key.parts[group % 3];
    right[i] += key.parts[(group + 1) % 3] + group;
  }
}

// Whether each of the words at `at` and after it, as a number in [0, 2^23), is below `bound`.
inline void choose(const Key& key, int64_t at, uint32_t bound, int8_t* to) {
  Words left[kAtOnce], right[kAtOnce], lanes;
  for (int i = 0; i < kLanes<float>; ++i) lanes[i] = i;
  for (int i = 0; i < kAtOnce; ++i) {
    left[i] = Words{} + (static_cast<uint32_t>(at >> 32) + key.parts[0]);
    right[i] = lanes + (static_cast<uint32_t>(at) + i * kLanes<float> + key.parts[1]);
  }
  rounds<1>(key, left, right);
  rounds<2>(key, left, right);
  rounds<3>(key, left, right);
  rounds<4>(key, left, right);
  rounds<5>(key, left, right);
  for (int i = 0; i < kAtOnce; ++i) {
    const auto below = (Signs)((left[i] ^ right[i]) >> kRest) < static_cast<int32_t>(bound);
    const Bytes chosen = __builtin_convertvector(below, Bytes) & 1;
    std::memcpy(to + i * kLanes<float>, &chosen, sizeof chosen);
  }
}

// Positions are counted up to whole blocks of words, which lie within 2^32 of each other.
ffi::Error kept(Pool pool, ffi::Buffer<ffi::U32> key_data, ffi::Buffer<ffi::F32> probability, ffi::Result<ffi::Buffer<ffi::PRED>> out) {
  constexpr int64_t block = kAtOnce * kLanes<float>;
  const Key key(key_data.typed_data()[0], key_data.typed_data()[1]);
  const uint32_t bound = std::ceil(std::clamp(probability.typed_data()[0], 0.f, 1.f) * (1 << kDigits));
  const int64_t count = out->element_count();
  int8_t* to = reinterpret_cast<int8_t*>(out->typed_data());
  parallel(pool, (count + kChoicesATask - 1) / kChoicesATask, [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * kChoicesATask);
    int64_t at = task * kChoicesATask;
    for (; at + block <= end; at += block) choose(key, at, bound, to + at);
    if (at == end) return;
    int8_t last[block];
    choose(key, at, bound, last);
    std::copy_n(last, end - at, to + at);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jnn_kept, kept, ffi::Ffi::Bind().Ctx<Pool>().Arg<ffi::Buffer<ffi::U32>>().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::PRED>>());

}  // namespace jnn
