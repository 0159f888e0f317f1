// The same operations as plain CUDA C++, for machines without Triton: one launch each, on torch's current stream.
// Nothing is allocated and nothing waits for the device, so a CUDA graph may capture them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "arithmetic.h"
#include "checks.h"

namespace pie_engine {
namespace {

constexpr int threads = 128;     // small blocks: at batch 1 the whole latent is 16384 elements
constexpr int lanes = 4;         // elements of a vector load: 16 bytes of float32, 8 of a 16-bit type
constexpr int64_t rows = 65535;  // a grid's limit in y; planes beyond it are the same blocks' next turn

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T narrow(float value);
template <>
__device__ __forceinline__ float narrow<float>(float value) { return value; }
template <>
__device__ __forceinline__ __half narrow<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// A type that is moved by one instruction, and the store. The compiler takes an assignment of a vector apart into its
// members and does not find them together again, so that instruction is written out.
template <int bytes>
struct Word;

template <>
struct Word<2> {
  using type = uint16_t;
  static __device__ __forceinline__ void store(void* target, type value) { *static_cast<type*>(target) = value; }
};

template <>
struct Word<4> {
  using type = uint32_t;
  static __device__ __forceinline__ void store(void* target, type value) { *static_cast<type*>(target) = value; }
};

template <>
struct Word<8> {
  using type = uint2;
  static __device__ __forceinline__ void store(void* target, type value) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(target)), "r"(value.x), "r"(value.y)
                 : "memory");
  }
};

template <>
struct Word<16> {
  using type = uint4;
  static __device__ __forceinline__ void store(void* target, type value) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)), "r"(value.x),
                 "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
  }
};

// V elements in one aligned access.
template <typename T, int V>
struct Pack {
  using Access = Word<sizeof(T) * V>;
  using Whole = typename Access::type;
  T values[V];

  static __device__ __forceinline__ Pack load(const void* base, int64_t offset) {
    const Whole whole = *reinterpret_cast<const Whole*>(static_cast<const T*>(base) + offset);
    Pack pack;
    memcpy(&pack, &whole, sizeof(pack));
    return pack;
  }

  __device__ __forceinline__ void store(void* base, int64_t offset) const {
    Whole whole;
    memcpy(&whole, this, sizeof(whole));
    Access::store(static_cast<T*>(base) + offset, whole);
  }
};

// All is loaded before anything is stored: x and the history are updated in place, and the compiler moves no load
// above a store that might overlap it.
template <typename S, typename IO, int K, int V>
__global__ void __launch_bounds__(threads, 4) step_kernel(const __grid_constant__ Step step) {
  using State = Pack<S, V>;
  using Io = Pack<IO, V>;
  const int64_t start = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) * V;
  const int64_t elements = step.shape.elements();
  if (step.timestep != nullptr && start == 0 && blockIdx.y == 0) *step.timestep = step.row[col_timestep];
  if (start >= step.shape.size) return;
  const Update<K> update(step.row);
  const float signal = step.row[col_signal], noise = step.row[col_noise], scale = step.row[col_scale];

  for (int64_t plane = blockIdx.y; plane < step.shape.planes; plane += gridDim.y) {
    const int64_t item = plane / step.shape.channels, offset = plane * step.shape.size + start;
    const int64_t mask_offset = (step.mask_per_channel ? plane : item) * step.shape.size + start;
    const State x = State::load(step.x, offset);
    const Io unconditional = Io::load(step.output, offset);
    Io conditional = {};
    State history[Update<K>::room] = {}, mask = {}, z0 = {}, eps = {};
    float guidance = 0.0f;
    if (step.guided) {
      conditional = Io::load(step.output, elements + offset);
      guidance = step.guidance[item];
    }
#pragma unroll
    for (int j = 0; j < K; ++j) history[j] = State::load(step.history, j * elements + offset);
    if (step.mask != nullptr) {
      mask = State::load(step.mask, mask_offset);
      z0 = State::load(step.z0, offset);
      if (step.eps != nullptr) eps = State::load(step.eps, offset);
    }

    State next;
    Io sample;
    int32_t worst = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      float e = widen(unconditional.values[i]);
      if (step.guided) e = guide(e, widen(conditional.values[i]), guidance);
      float h[Update<K>::room];
#pragma unroll
      for (int j = 0; j < K; ++j) h[j] = widen(history[j].values[i]);
      float after = update(widen(x.values[i]), e, h);
#pragma unroll
      for (int j = 0; j < K; ++j) history[j].values[i] = narrow<S>(h[j]);
      if (step.mask != nullptr) {
        float background = signal * widen(z0.values[i]);
        if (step.eps != nullptr) background += noise * widen(eps.values[i]);
        after = blend(widen(mask.values[i]), after, background);
      }
      next.values[i] = narrow<S>(after);
      sample.values[i] = narrow<IO>(scale * after);
      worst = larger(worst, larger(magnitude(e), magnitude(widen(next.values[i]))));
    }

    next.store(step.x, offset);
#pragma unroll
    for (int j = 0; j < K; ++j) history[j].store(step.history, j * elements + offset);
    if (step.sample != nullptr) {
      sample.store(step.sample, offset);
      if (step.guided) sample.store(step.sample, elements + offset);
    }
    if (worst >= infinite) step.flags[item] = 1;  // all who find something store the same value
  }
}

template <typename S, typename IO, int V>
__global__ void __launch_bounds__(threads) enter_kernel(const __grid_constant__ Entry entry) {
  using State = Pack<S, V>;
  using Io = Pack<IO, V>;
  const int64_t start = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) * V;
  const int64_t elements = entry.shape.elements();
  if (entry.timestep != nullptr && start == 0 && blockIdx.y == 0) *entry.timestep = entry.entry[3];
  if (start >= entry.shape.size) return;
  const float signal = entry.entry[0], noise = entry.entry[1], scale = entry.entry[2];

  for (int64_t plane = blockIdx.y; plane < entry.shape.planes; plane += gridDim.y) {
    const int64_t item = plane / entry.shape.channels, offset = plane * entry.shape.size + start;
    const State z = State::load(entry.z, offset);
    State eps = {};
    if (entry.eps != nullptr) eps = State::load(entry.eps, offset);
    State x, zero;
    Io sample;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      float noised = signal * widen(z.values[i]);
      if (entry.eps != nullptr) noised += noise * widen(eps.values[i]);
      x.values[i] = narrow<S>(noised);
      zero.values[i] = narrow<S>(0.0f);
      sample.values[i] = narrow<IO>(scale * noised);
    }
    x.store(entry.x, offset);
    for (int64_t j = 0; entry.history != nullptr && j < entry.kept; ++j) {
      zero.store(entry.history, j * elements + offset);
    }
    for (int64_t half = 0; entry.sample != nullptr && half < entry.halves; ++half) {
      sample.store(entry.sample, half * elements + offset);
    }
    if (entry.flags != nullptr && start == 0 && plane == item * entry.shape.channels) entry.flags[item] = 0;
  }
}

// A type, handed to a generic lambda.
template <typename T>
struct Type {
  using type = T;
};

template <typename Use>
void with_type(Storage storage, const Use& use) {
  if (storage == Storage::fp32) return use(Type<float>{});
  if (storage == Storage::fp16) return use(Type<__half>{});
  use(Type<__nv_bfloat16>{});
}

template <typename Use>
void with_number(int number, const Use& use) {
  if (number == 0) return use(std::integral_constant<int, 0>{});
  if (number == 1) return use(std::integral_constant<int, 1>{});
  if (number == 2) return use(std::integral_constant<int, 2>{});
  if (number == 3) return use(std::integral_constant<int, 3>{});
  use(std::integral_constant<int, 4>{});
}

// Whether every access of `lanes` elements is aligned: planes begin at multiples of it, and so does each tensor.
bool aligned(const Planes& shape, Storage storage, std::initializer_list<const void*> pointers) {
  bool all = shape.size % lanes == 0;
  for (const void* pointer : pointers) all &= reinterpret_cast<uintptr_t>(pointer) % (lanes * bytes_of(storage)) == 0;
  return all;
}

template <typename Arguments>
void launch(void (*kernel)(Arguments), const Arguments& arguments, bool vector, const Tensor& x) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const Planes& shape = arguments.shape;
  const int64_t share = threads * (vector ? lanes : 1), blocks = (shape.size + share - 1) / share;
  const dim3 grid(static_cast<unsigned>(blocks > 0 ? blocks : 1),
                  static_cast<unsigned>(shape.planes > rows ? rows : shape.planes > 0 ? shape.planes : 1));
  kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "the CUDA kernel did not start (", cudaGetErrorString(error),
                  "); use the eager step");
}

void denoise_step(const Tensor& x, const Tensor& history, const Optional& sample, const Optional& timestep,
                  const Tensor& flags, const Tensor& output, const Tensor& table, int64_t row,
                  const Optional& guidance, const Optional& mask, const Optional& z0, const Optional& eps) {
  const Step step =
      check_step(x, history, sample, timestep, flags, output, table, row, guidance, mask, z0, eps);
  const bool vector = aligned(step.shape, step.state, {step.x, step.history, step.mask, step.z0, step.eps}) &&
                      aligned(step.shape, step.io, {step.sample, step.output});
  with_type(step.state, [&](auto state) {
    with_type(step.io, [&](auto io) {
      with_number(step.kept, [&](auto kept) {
        using S = typename decltype(state)::type;
        using IO = typename decltype(io)::type;
        constexpr int K = decltype(kept)::value;
        launch(vector ? step_kernel<S, IO, K, lanes> : step_kernel<S, IO, K, 1>, step, vector, x);
      });
    });
  });
}

void noising(const Tensor& x, const Optional& history, const Optional& sample, const Optional& timestep,
             const Optional& flags, const Tensor& z, const Optional& eps, const Tensor& entry) {
  const Entry arguments = check_entry(x, history, sample, timestep, flags, z, eps, entry);
  const bool vector =
      aligned(arguments.shape, arguments.state, {arguments.x, arguments.history, arguments.z, arguments.eps}) &&
      aligned(arguments.shape, arguments.io, {arguments.sample});
  with_type(arguments.state, [&](auto state) {
    with_type(arguments.io, [&](auto io) {
      using S = typename decltype(state)::type;
      using IO = typename decltype(io)::type;
      launch(vector ? enter_kernel<S, IO, lanes> : enter_kernel<S, IO, 1>, arguments, vector, x);
    });
  });
}

}  // namespace
}  // namespace pie_engine

STABLE_TORCH_LIBRARY_IMPL(pie_engine, CUDA, library) {
  library.impl("denoise_step", TORCH_BOX(&pie_engine::denoise_step));
  library.impl("noising", TORCH_BOX(&pie_engine::noising));
}
