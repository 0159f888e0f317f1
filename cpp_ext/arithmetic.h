// The arithmetic of one element. All of it is float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "arguments.h"

namespace pie_engine {
namespace {  // each translation unit has its own copy: they are compiled for different instruction sets

PIE_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

PIE_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Magnitudes as integers order as the values do, with infinity and NaN last: a maximum of them finds what is not
// finite, in integer instructions that vectorise where a comparison of floats with early exit does not.
PIE_INLINE int32_t magnitude(float value) { return static_cast<int32_t>(bits_of(value) & 0x7fffffffu); }
constexpr int32_t infinite = 0x7f800000;

PIE_INLINE int32_t larger(int32_t left, int32_t right) { return left > right ? left : right; }

PIE_INLINE float guide(float unconditional, float conditional, float scale) {
  return unconditional + scale * (conditional - unconditional);
}

PIE_INLINE float blend(float mask, float inside, float background) {
  return mask * inside + (1.0f - mask) * background;
}

// x' = a x + b e + c . h and h' = P h + p x + q e, the coefficients of one row held by value.
template <int K>
struct Update {
  static constexpr int room = K > 0 ? K : 1;
  float a, b, c[room], p[room], q[room], matrix[room * room];

  PIE_INLINE explicit Update(const float* row) : a(row[col_a]), b(row[col_b]) {
    const float* vectors = row + col_vectors;
    for (int i = 0; i < K; ++i) {
      c[i] = vectors[i];
      p[i] = vectors[K + i];
      q[i] = vectors[2 * K + i];
    }
    for (int i = 0; i < K * K; ++i) matrix[i] = vectors[3 * K + i];
  }

  PIE_INLINE float operator()(float x, float e, float (&h)[room]) const {
    float after = a * x + b * e;
    if (K > 0) {
      float sum = c[0] * h[0];
      for (int i = 1; i < K; ++i) sum += c[i] * h[i];
      after += sum;
      float next[room];
      for (int i = 0; i < K; ++i) {
        float kept = matrix[i * K] * h[0];
        for (int j = 1; j < K; ++j) kept += matrix[i * K + j] * h[j];
        next[i] = kept + p[i] * x + q[i] * e;
      }
      for (int i = 0; i < K; ++i) h[i] = next[i];
    }
    return after;
  }
};

}  // namespace
}  // namespace pie_engine
