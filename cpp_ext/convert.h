// float32 from and to fp16 and bf16 in integer and float32 instructions without branches: the compiler turns the loops
// into vector code for any instruction set. Rounding is to nearest, ties to even, as torch's.
#pragma once

#include "arithmetic.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace pie_engine {
namespace {

PIE_INLINE float from_bfloat(uint16_t value) { return float_of(static_cast<uint32_t>(value) << 16); }

PIE_INLINE uint16_t to_bfloat(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

PIE_INLINE float from_half(uint16_t value) {
  const uint32_t magnitude = (value & 0x7fffu) << 13, sign = static_cast<uint32_t>(value & 0x8000u) << 16;
  // Normal numbers, infinity and NaN: rebias the exponent. Subnormal ones: let a float32 subtraction normalise them.
  const uint32_t rebiased = magnitude + (magnitude >= 0x0f800000u ? (255u - 31u) << 23 : (127u - 15u) << 23);
  const float small = float_of(magnitude + (113u << 23)) - float_of(113u << 23);
  return float_of((magnitude < 0x00800000u ? bits_of(small) : rebiased) | sign);
}

PIE_INLINE uint16_t to_half(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - ((127u - 15u) << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: the addition of 0.5 shifts the fraction to where a half's subnormal has it, and rounds it.
  const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;  // 65520 and above rounds to infinity
  const uint32_t finite = magnitude < (113u << 23) ? small : normal;
  return static_cast<uint16_t>((magnitude >= 0x477ff000u ? large : finite) | ((bits >> 16) & 0x8000u));
}

// The converters below: to and from the bits of one value, what is infinite as stored, and as many values as possible
// in the processor's own instructions, if it has any: those return how many.
struct Half {
  static constexpr int16_t infinite = 0x7c00;
  static PIE_INLINE float from(uint16_t value) { return from_half(value); }
  static PIE_INLINE uint16_t to(float value) { return to_half(value); }

#ifdef __F16C__
  static int64_t read(const uint16_t* source, float* target, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
      _mm256_storeu_ps(target + i, _mm256_cvtph_ps(stored));
    }
    return i;
  }

  static int64_t write(const float* source, uint16_t* target, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m128i stored = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), stored);
    }
    return i;
  }
#else
  static int64_t read(const uint16_t*, float*, int64_t) { return 0; }
  static int64_t write(const float*, uint16_t*, int64_t) { return 0; }
#endif
};

struct Bfloat {
  static constexpr int16_t infinite = 0x7f80;
  static PIE_INLINE float from(uint16_t value) { return from_bfloat(value); }
  static PIE_INLINE uint16_t to(float value) { return to_bfloat(value); }
  static int64_t read(const uint16_t*, float*, int64_t) { return 0; }
  static int64_t write(const float*, uint16_t*, int64_t) { return 0; }
};

template <typename T>
void read_loop(const uint16_t* __restrict source, float* __restrict target, int64_t n) {
  for (int64_t i = T::read(source, target, n); i < n; ++i) target[i] = T::from(source[i]);
}

// Returns whether all values are finite as stored.
template <typename T>
bool write_loop(const float* __restrict source, uint16_t* __restrict target, int64_t n) {
  for (int64_t i = T::write(source, target, n); i < n; ++i) target[i] = T::to(source[i]);
  int16_t worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int16_t size = static_cast<int16_t>(target[i] & 0x7fffu);
    worst = size > worst ? size : worst;
  }
  return worst < T::infinite;
}

// n values as float32: where they lie if they are float32 already, else converted into `buffer`.
inline const float* read(const void* base, Storage storage, int64_t offset, int64_t n, float* buffer) {
  if (storage == Storage::fp32) return static_cast<const float*>(base) + offset;
  const uint16_t* source = static_cast<const uint16_t*>(base) + offset;
  if (storage == Storage::fp16) {
    read_loop<Half>(source, buffer, n);
  } else {
    read_loop<Bfloat>(source, buffer, n);
  }
  return buffer;
}

// Where the next n values are to be computed: in place if they are stored as float32, else in `buffer`, for `write`.
inline float* place(void* base, Storage storage, int64_t offset, float* buffer) {
  return storage == Storage::fp32 ? static_cast<float*>(base) + offset : buffer;
}

// Stores what was computed at `place`; false if a finite value became infinite by it.
inline bool write(const float* values, void* base, Storage storage, int64_t offset, int64_t n) {
  if (storage == Storage::fp32) return true;
  uint16_t* target = static_cast<uint16_t*>(base) + offset;
  return storage == Storage::fp16 ? write_loop<Half>(values, target, n)
                                  : write_loop<Bfloat>(values, target, n);
}

}  // namespace
}  // namespace pie_engine
