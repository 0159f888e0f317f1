// What the kernels are given once it is checked: plain pointers and sizes, with nothing of torch in them.
#pragma once

#include <cstdint>

#define PIE_INLINE inline __attribute__((always_inline))

namespace pie_engine {

constexpr int max_kept = 4;  // latents of history; PNDM, the most demanding sampler, keeps 3

enum class Storage : int { fp32, fp16, bf16 };

constexpr int64_t bytes_of(Storage storage) { return storage == Storage::fp32 ? 4 : 2; }

// The planes of a latent [B, C, h, w]: every tensor of its shape is `planes` runs of `size` elements.
struct Planes {
  int64_t batch, channels, planes, size;

  PIE_INLINE int64_t elements() const { return planes * size; }
};

// Columns of a table's row; c[K], p[K], q[K] and P[K * K] follow (kernels/table.py).
enum Column : int { col_a, col_b, col_signal, col_noise, col_scale, col_timestep, col_last, col_vectors };

struct Step {
  Planes shape;
  Storage state, io;  // of x, history, mask, outside, eps; of sample and output
  int kept;
  bool guided, mask_per_channel;
  void* x;
  void* history;
  void* sample;
  float* timestep;
  int32_t* flags;
  const void* output;
  int32_t* row;
  const float* coefficients;  // of that row
  const float* guidance;
  const void* mask;     // null for no mask; the blend's weight in a round's last step
  const void* outside;  // what the mask keeps: z0, in the last step the original
  const void* eps;      // null in the last step, which takes the outside as it is
};

struct Entry {
  Planes shape;
  Storage state, io;
  int64_t kept, halves;
  void* x;
  void* history;  // null for none, as sample, timestep, flags and eps
  void* sample;
  float* timestep;
  int32_t* flags;
  const void* z;
  const void* eps;
  const float* entry;
};

}  // namespace pie_engine
