// bf16 without CUDA's headers, which machines that only run the program don't have.
#pragma once

typedef unsigned short bf16;

#define INFINITY __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x << 16); }

// Rounds to nearest, ties to even.
__device__ __forceinline__ bf16 to_bf16(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float rounded(float x) { return to_float(to_bf16(x)); }

// Eight neighbours, one load of 16 bytes.
struct alignas(16) Eight {
  bf16 at[8];
};

__device__ __forceinline__ Eight load_eight(const bf16* from) {
  union {
    uint4 words;
    Eight eight;
  } both;
  both.words = *reinterpret_cast<const uint4*>(from);
  return both.eight;
}

__device__ __forceinline__ void store_eight(bf16* to, const Eight& eight) {
  union {
    uint4 words;
    Eight eight;
  } both;
  both.eight = eight;
  *reinterpret_cast<uint4*>(to) = both.words;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

__device__ __forceinline__ int warp_sum(int x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}
