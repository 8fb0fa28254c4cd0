// How the places of a batch are cut into parts that stay in the cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "geometry.h"
#include "products.h"

namespace jnn {

// Which images, depths and rows of places.
struct Slab {
  int64_t image, images;
  Ints begin, size;
};

struct Cut {
  Parts images{1, 1}, depths{1, 1}, rows{1, 1};
  int64_t most_images = 1;
  Ints size{1, 1, 1};

  Cut() = default;

  // Several images while they are small, else some depths or rows of one: of `numbers(size)` for each image, `most` at most, as far as
  // rows go, and `wanted` slabs at least, as far as that leaves slabs of 4 rows.
  template <class Numbers>
  Cut(const Ints& places, int64_t batch, int64_t most, int64_t wanted, const Numbers& numbers) : size(places) {
    auto count = [&] { return batch * Parts(places[0], size[0]).parts * Parts(places[1], size[1]).parts; };
    while (size[0] * size[1] > 1) {
      const bool large = numbers(size) > most;
      if (!large && (count() >= wanted || (size[0] == 1 && size[1] <= 4))) break;
      int64_t& longer = size[size[0] > 1 ? 0 : 1];
      longer = (longer + 1) / 2;
    }
    const bool whole = size[0] == places[0] && size[1] == places[1];
    if (whole) most_images = std::clamp(std::min(most / numbers(size), count() / wanted), int64_t{1}, batch);
    images = Parts(batch, most_images), depths = Parts(places[0], size[0]), rows = Parts(places[1], size[1]);
  }

  int64_t slabs() const { return images.parts * depths.parts * rows.parts; }

  Slab slab(int64_t i) const {
    const int64_t row = i % rows.parts, depth = i / rows.parts % depths.parts, image = i / rows.parts / depths.parts;
    return {
        images.begin(image), images.size(image), {depths.begin(depth), rows.begin(row), 0}, {depths.size(depth), rows.size(row), size[2]}};
  }
};

}  // namespace jnn
