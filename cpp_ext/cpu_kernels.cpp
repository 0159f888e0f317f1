// The fused step on the CPU. build.py compiles this file for each instruction set, with PIE_KERNELS naming the result.
// It includes nothing but headers of its own and of C: an inline function of the C++ library, compiled here with AVX2,
// could be the copy that the linker keeps for everybody. One pass for each formula, over a tile that stays in the
// first-level cache, costs little more than a single pass over everything, and needs no copy for each set of options.
#include "convert.h"
#include "cpu.h"

namespace pie_engine {
namespace {

struct Tile {
  int64_t plane, item, n, offset;  // offset: of the tile's first element in a tensor of x's shape

  Tile(const Planes& shape, int64_t index) {
    const int64_t tiles = tiles_per_plane(shape);
    plane = index / tiles;
    item = plane / shape.channels;
    const int64_t start = (index - plane * tiles) * tile_size;
    n = shape.size - start < tile_size ? shape.size - start : tile_size;
    offset = plane * shape.size + start;
  }
};

// The loops. Pointers may be equal (in-place update) but elements never overlap otherwise: hence ivdep.

int32_t guide_loop(const float* u, const float* c, float scale, float* e, int64_t n) {
  int32_t worst = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const float value = guide(u[i], c[i], scale);
    e[i] = value;
    worst = larger(worst, magnitude(value));
  }
  return worst;
}

int32_t worst_of(const float* values, int64_t n) {
  int32_t worst = 0;
  for (int64_t i = 0; i < n; ++i) worst = larger(worst, magnitude(values[i]));
  return worst;
}

template <int K>
void update_loop(const float* row, const float* x, const float* e, float* const* history, float* after, int64_t n) {
  const Update<K> update(row);
  float* kept[Update<K>::room];
  for (int j = 0; j < K; ++j) kept[j] = history[j];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    float h[Update<K>::room] = {};
    for (int j = 0; j < K; ++j) h[j] = kept[j][i];
    after[i] = update(x[i], e[i], h);
    for (int j = 0; j < K; ++j) kept[j][i] = h[j];
  }
}

using UpdateLoop = void (*)(const float*, const float*, const float*, float* const*, float*, int64_t);
constexpr UpdateLoop update_loops[max_kept + 1] = {update_loop<0>, update_loop<1>, update_loop<2>, update_loop<3>,
                                                   update_loop<4>};

void blend_loop(const float* mask, const float* background, float* after, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) after[i] = blend(mask[i], after[i], background[i]);
}

void blend_loop(const float* mask, const float* z0, const float* eps, float signal, float noise, float* after,
                int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) after[i] = blend(mask[i], after[i], signal * z0[i] + noise * eps[i]);
}

// x and the next U-Net input from the same read. Returns the largest magnitude of x.
int32_t finish_loop(const float* after, float scale, float* x, float* sample, int64_t n) {
  int32_t worst = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const float value = after[i];
    x[i] = value;
    sample[i] = scale * value;
    worst = larger(worst, magnitude(value));
  }
  return worst;
}

void noise_loop(const float* z, const float* eps, float signal, float noise, float* noised, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) noised[i] = signal * z[i] + noise * eps[i];
}

void scale_loop(const float* values, float scale, float* scaled, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) scaled[i] = scale * values[i];
}

// The first copy of `sample` into the others, as it is stored.
void repeat(void* sample, Storage storage, int64_t offset, int64_t elements, int64_t copies, int64_t n) {
  const int64_t bytes = bytes_of(storage);
  char* first = static_cast<char*>(sample) + offset * bytes;
  for (int64_t copy = 1; copy < copies; ++copy) memcpy(first + copy * elements * bytes, first, n * bytes);
}

struct alignas(64) Buffers {
  float x[tile_size], e[tile_size], after[tile_size], mask[tile_size], z[tile_size], eps[tile_size];
  float output[2][tile_size], history[max_kept][tile_size];
};

void step_tile(const Step& step, const Tile& tile, Buffers& buffers) {
  const int64_t elements = step.shape.elements(), n = tile.n, offset = tile.offset;
  const float* row = step.coefficients;

  const float* e = read(step.output, step.io, offset, n, buffers.output[0]);
  int32_t worst;
  if (step.guided) {
    const float* conditional = read(step.output, step.io, elements + offset, n, buffers.output[1]);
    worst = guide_loop(e, conditional, step.guidance[tile.item], buffers.e, n);
    e = buffers.e;
  } else {
    worst = worst_of(e, n);
  }

  const float* x = read(step.x, step.state, offset, n, buffers.x);
  float* history[max_kept];
  for (int j = 0; j < step.kept; ++j) {
    read(step.history, step.state, j * elements + offset, n, buffers.history[j]);
    history[j] = place(step.history, step.state, j * elements + offset, buffers.history[j]);
  }
  update_loops[step.kept](row, x, e, history, buffers.after, n);
  for (int j = 0; j < step.kept; ++j) write(history[j], step.history, step.state, j * elements + offset, n);

  if (step.mask != nullptr) {
    const int64_t plane = step.mask_per_channel ? tile.plane : tile.item;
    const int64_t mask_offset = plane * step.shape.size + (offset - tile.plane * step.shape.size);
    const float* mask = read(step.mask, step.state, mask_offset, n, buffers.mask);
    const float* outside = read(step.outside, step.state, offset, n, buffers.z);
    if (step.eps != nullptr) {
      const float* eps = read(step.eps, step.state, offset, n, buffers.eps);
      blend_loop(mask, outside, eps, row[col_signal], row[col_noise], buffers.after, n);
    } else {
      blend_loop(mask, outside, buffers.after, n);
    }
  }

  float* next = place(step.x, step.state, offset, buffers.x);
  float* sample = place(step.sample, step.io, offset, buffers.output[0]);
  worst = larger(worst, finish_loop(buffers.after, row[col_scale], next, sample, n));
  write(sample, step.sample, step.io, offset, n);
  repeat(step.sample, step.io, offset, elements, step.guided ? 2 : 1, n);
  const bool stored = write(next, step.x, step.state, offset, n);
  // Threads that work on one item may both find something: they store the same value.
  if (worst >= infinite || !stored) __atomic_store_n(step.flags + tile.item, 1, __ATOMIC_RELAXED);
}

void enter_tile(const Entry& entry, const Tile& tile, Buffers& buffers) {
  const int64_t elements = entry.shape.elements(), n = tile.n, offset = tile.offset;
  const float* z = read(entry.z, entry.state, offset, n, buffers.z);
  if (entry.eps != nullptr) {
    const float* eps = read(entry.eps, entry.state, offset, n, buffers.eps);
    noise_loop(z, eps, entry.entry[0], entry.entry[1], buffers.after, n);
  } else {
    scale_loop(z, entry.entry[0], buffers.after, n);
  }
  float* x = place(entry.x, entry.state, offset, buffers.x);
  memcpy(x, buffers.after, n * sizeof(float));
  write(x, entry.x, entry.state, offset, n);
  if (entry.sample != nullptr) {
    float* sample = place(entry.sample, entry.io, offset, buffers.output[0]);
    scale_loop(buffers.after, entry.entry[2], sample, n);
    write(sample, entry.sample, entry.io, offset, n);
    repeat(entry.sample, entry.io, offset, elements, entry.halves, n);
  }
  const int64_t bytes = bytes_of(entry.state);
  for (int64_t j = 0; entry.history != nullptr && j < entry.kept; ++j) {
    memset(static_cast<char*>(entry.history) + (j * elements + offset) * bytes, 0, n * bytes);
  }
}

void step_tiles(const Step& step, int64_t begin, int64_t end) {
  Buffers buffers;
  for (int64_t index = begin; index < end; ++index) step_tile(step, Tile(step.shape, index), buffers);
}

void enter_tiles(const Entry& entry, int64_t begin, int64_t end) {
  Buffers buffers;
  for (int64_t index = begin; index < end; ++index) enter_tile(entry, Tile(entry.shape, index), buffers);
}

}  // namespace

const CpuKernels PIE_KERNELS = {step_tiles, enter_tiles};

}  // namespace pie_engine
