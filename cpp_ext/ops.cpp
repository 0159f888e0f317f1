// torch.ops.pie_engine.denoise_step and noising: their schemas, and their implementation for the CPU.
// The arguments and what they mean are those of the eager references, kernels/denoise_step.py and kernels/noising.py.
#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "cpu.h"

namespace pie_engine {
namespace {

// Elements that are worth a thread of their own: waking one costs as much as some microseconds of this work.
constexpr int64_t grain = 8192;
constexpr int64_t grain_tiles = grain / tile_size;

// AVX-512 was tried: these loops wait for memory, and it gained nothing over AVX2.
const CpuKernels& kernels() {
#ifdef PIE_X86
  static const CpuKernels& best = __builtin_cpu_supports("avx2") ? cpu_avx2 : cpu_baseline;
  return best;
#else
  return cpu_baseline;
#endif
}

template <typename Run>
void over_tiles(const Planes& shape, const Run& run) {
  // A tile of a small plane holds fewer elements, so more of them make a thread's share.
  const int64_t tiles = tiles_per_plane(shape);
  const int64_t share = shape.size >= tile_size ? grain_tiles : grain / (shape.size > 0 ? shape.size : 1);
  torch::stable::parallel_for(0, shape.planes * tiles, share, run);
}

void denoise_step(const Tensor& x, const Tensor& history, const Tensor& sample, const Tensor& timestep,
                  const Tensor& flags, const Tensor& output, const Tensor& table, const Tensor& row,
                  const Optional& guidance, const Optional& mask, const Optional& z0, const Optional& eps,
                  const Optional& weight, const Optional& original) {
  const Step step = check_step(x, history, sample, timestep, flags, output, table, row, guidance, mask, z0, eps,
                               weight, original);
  over_tiles(step.shape, [&](int64_t begin, int64_t end) { kernels().step(step, begin, end); });
  *step.timestep = step.coefficients[col_timestep];
  ++*step.row;
}

void noising(const Tensor& x, const Optional& history, const Optional& sample, const Optional& timestep,
             const Optional& flags, const Tensor& z, const Optional& eps, const Tensor& entry) {
  const Entry arguments = check_entry(x, history, sample, timestep, flags, z, eps, entry);
  over_tiles(arguments.shape, [&](int64_t begin, int64_t end) { kernels().enter(arguments, begin, end); });
  for (int64_t i = 0; arguments.flags != nullptr && i < arguments.shape.batch; ++i) arguments.flags[i] = 0;
  if (arguments.timestep != nullptr) *arguments.timestep = arguments.entry[3];
}

}  // namespace
}  // namespace pie_engine

STABLE_TORCH_LIBRARY(pie_engine, library) {
  library.def(
      "denoise_step(Tensor(a!) x, Tensor(b!) history, Tensor(c!) sample, Tensor(d!) timestep, Tensor(e!) flags, "
      "Tensor output, Tensor table, Tensor(f!) row, Tensor? guidance=None, Tensor? mask=None, Tensor? z0=None, "
      "Tensor? eps=None, Tensor? weight=None, Tensor? original=None) -> ()");
  library.def(
      "noising(Tensor(a!) x, Tensor(b!)? history, Tensor(c!)? sample, Tensor(d!)? timestep, Tensor(e!)? flags, "
      "Tensor z, Tensor? eps, Tensor entry) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pie_engine, CPU, library) {
  library.impl("denoise_step", TORCH_BOX(&pie_engine::denoise_step));
  library.impl("noising", TORCH_BOX(&pie_engine::noising));
}
