// From torch's tensors to plain arguments, with everything that a kernel relies on checked. All tensors are the
// processor's: torch calls these operations for no others.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <string>

#include "arguments.h"

namespace pie_engine {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline std::string listed(const int64_t* sizes, int64_t dims) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < dims; ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

inline Storage storage_of(const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16, name,
                  " is ", torch::headeronly::toString(dtype), "; pass Float, Half or BFloat16");
  return dtype == ScalarType::Float ? Storage::fp32 : dtype == ScalarType::Half ? Storage::fp16 : Storage::bf16;
}

inline void contiguous(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " is not contiguous; pass ", name, ".contiguous()");
}

// Where a tensor's elements lie, once it is what it has to be.
template <size_t N>
void* checked(const char* name, const Tensor& tensor, ScalarType dtype, const int64_t (&sizes)[N]) {
  const auto found = tensor.sizes();
  bool equal = found.size() == N;
  for (size_t i = 0; equal && i < N; ++i) equal = found[i] == sizes[i];
  STD_TORCH_CHECK(equal, name, " has the shape ", listed(found.data(), found.size()), "; pass ", listed(sizes, N));
  const ScalarType has = tensor.scalar_type();
  STD_TORCH_CHECK(has == dtype, name, " is ", torch::headeronly::toString(has), "; convert it to ",
                  torch::headeronly::toString(dtype));
  contiguous(name, tensor);
  return tensor.mutable_data_ptr();  // of the inputs too: it costs nothing unless one is a lazy copy
}

template <size_t N>
void* checked(const char* name, const Optional& tensor, ScalarType dtype, const int64_t (&sizes)[N]) {
  return tensor ? checked(name, *tensor, dtype, sizes) : nullptr;
}

inline Planes planes_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "x has ", x.dim(), " dimensions; pass [B, C, h, w]");
  const auto sizes = x.sizes();
  return {sizes[0], sizes[1], sizes[0] * sizes[1], sizes[2] * sizes[3]};
}

// How many latents a history [K, B, C, h, w] keeps.
inline int64_t kept_of(const Tensor& history) {
  STD_TORCH_CHECK(history.dim() == 5, "history has ", history.dim(), " dimensions; pass [K, B, C, h, w]");
  return history.size(0);
}

inline Step check_step(const Tensor& x, const Tensor& history, const Tensor& sample, const Tensor& timestep,
                       const Tensor& flags, const Tensor& output, const Tensor& table, const Tensor& row,
                       const Optional& guidance, const Optional& mask, const Optional& z0, const Optional& eps,
                       const Optional& weight, const Optional& original) {
  const ScalarType state = x.scalar_type(), io = output.scalar_type();
  contiguous("x", x);
  Step step{};
  step.shape = planes_of(x);
  step.state = storage_of("x", x);
  step.io = storage_of("output", output);
  step.guided = guidance.has_value();

  const int64_t batch = step.shape.batch, channels = step.shape.channels, height = x.size(2), width = x.size(3);
  const int64_t latent[] = {batch, channels, height, width};
  const int64_t full[] = {(step.guided ? 2 : 1) * batch, channels, height, width};
  const int64_t kept = kept_of(history), columns = col_vectors + 3 * kept + kept * kept;
  STD_TORCH_CHECK(kept <= max_kept, "history keeps ", kept, " latents, and this kernel at most ", max_kept,
                  "; use the eager step");
  STD_TORCH_CHECK(table.dim() == 2 && table.size(1) == columns, "table has the shape ",
                  listed(table.sizes().data(), table.dim()), "; pass [k, ", columns, "] for a history of ", kept);

  step.kept = static_cast<int>(kept);
  step.x = checked("x", x, state, latent);
  step.history = checked("history", history, state, {kept, batch, channels, height, width});
  step.sample = checked("sample", sample, io, full);
  step.timestep = static_cast<float*>(checked("timestep", timestep, ScalarType::Float, {1}));
  step.flags = static_cast<int32_t*>(checked("flags", flags, ScalarType::Int, {batch}));
  step.output = checked("output", output, io, full);
  step.row = static_cast<int32_t*>(checked("row", row, ScalarType::Int, {1}));
  step.coefficients = static_cast<const float*>(checked("table", table, ScalarType::Float, {table.size(0), columns}));
  STD_TORCH_CHECK(*step.row >= 0 && *step.row < table.size(0), "row is ", *step.row, ", and the table has ",
                  table.size(0), "; set it to 0 to ", table.size(0) - 1);
  step.coefficients += *step.row * columns;
  step.guidance = static_cast<const float*>(checked("guidance", guidance, ScalarType::Float, {batch}));
  if (mask) {
    STD_TORCH_CHECK(z0 && eps && weight && original, "mask is given without ",
                    !z0 ? "z0" : !eps ? "eps" : !weight ? "weight" : "original",
                    "; masked steps need z0, eps, weight and original");
    step.mask_per_channel = mask->dim() == 4 && mask->size(1) == channels && channels > 1;
    const int64_t shape[] = {batch, step.mask_per_channel ? channels : 1, height, width};
    step.mask = checked("mask", mask, state, shape);
    step.outside = checked("z0", z0, state, latent);
    step.eps = checked("eps", eps, state, latent);
    const void* last_mask = checked("weight", weight, state, shape);
    const void* last_outside = checked("original", original, state, latent);
    if (step.coefficients[col_last] != 0) {
      step.mask = last_mask;
      step.outside = last_outside;
      step.eps = nullptr;
    }
  }
  return step;
}

inline Entry check_entry(const Tensor& x, const Optional& history, const Optional& sample, const Optional& timestep,
                         const Optional& flags, const Tensor& z, const Optional& eps, const Tensor& entry) {
  const ScalarType state = x.scalar_type();
  contiguous("x", x);
  Entry arguments{};
  arguments.shape = planes_of(x);
  arguments.state = storage_of("x", x);

  const int64_t batch = arguments.shape.batch, channels = arguments.shape.channels;
  const int64_t height = x.size(2), width = x.size(3);
  const int64_t latent[] = {batch, channels, height, width};
  STD_TORCH_CHECK(!sample || timestep, "sample is given without timestep; pass both or neither");
  arguments.x = checked("x", x, state, latent);
  if (history) {
    arguments.kept = kept_of(*history);
    arguments.history = checked("history", *history, state, {arguments.kept, batch, channels, height, width});
  }
  if (sample) {
    const int64_t rows = sample->dim() == 4 ? sample->size(0) : 0;
    STD_TORCH_CHECK(sample->dim() == 4 && (batch ? rows % batch == 0 : rows == 0), "sample has the shape ",
                    listed(sample->sizes().data(), sample->dim()), "; pass a multiple of x's batch of ", batch);
    arguments.io = storage_of("sample", *sample);
    arguments.halves = batch ? rows / batch : 0;
    arguments.sample = checked("sample", *sample, sample->scalar_type(), {rows, channels, height, width});
    arguments.timestep = static_cast<float*>(checked("timestep", timestep, ScalarType::Float, {1}));
  }
  arguments.flags = static_cast<int32_t*>(checked("flags", flags, ScalarType::Int, {batch}));
  arguments.z = checked("z", z, state, latent);
  arguments.eps = checked("eps", eps, state, latent);
  arguments.entry = static_cast<const float*>(checked("entry", entry, ScalarType::Float, {4}));
  return arguments;
}

}  // namespace pie_engine
