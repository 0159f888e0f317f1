// The CPU kernels, compiled once for each instruction set and chosen when the library is loaded (ops.cpp).
#pragma once

#include "arguments.h"

namespace pie_engine {

// A tile lies within one plane. Its buffers fit the first-level cache, and because tiles begin at the same elements
// however many threads there are, no result depends on their number.
constexpr int64_t tile_size = 512;

inline int64_t tiles_per_plane(const Planes& shape) { return (shape.size + tile_size - 1) / tile_size; }

struct CpuKernels {
  void (*step)(const Step&, int64_t begin, int64_t end);  // tiles
  void (*enter)(const Entry&, int64_t begin, int64_t end);
};

extern const CpuKernels cpu_baseline, cpu_avx2;

}  // namespace pie_engine
