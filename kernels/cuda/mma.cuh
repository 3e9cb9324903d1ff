// Warp-wide matrix products (mma.sync m16n8k16: bf16 in, f32 sums) and what feeds them from shared memory.
#pragma once
#include "bf16.cuh"

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return (unsigned)__cvta_generic_to_shared(p);
}

// Rows of `width` numbers, a multiple of 64, in shared memory. The eight 16-byte chunks of each 64 numbers change places
// with the row, so that a column of chunks lies in all banks.
__device__ __forceinline__ int swizzled(int row, int column, int width) {
  return row * width + (((column >> 3) ^ (row & 7)) << 3) + (column & 7);
}

// 16 bytes from global to shared memory in the background; zeros where not `present`.
__device__ __forceinline__ void copy_async(bf16* to, const bf16* from, bool present) {
  int bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int LATER>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

__device__ __forceinline__ void load_4x8x8(unsigned (&to)[4], const bf16* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(from)));
}

__device__ __forceinline__ void load_4x8x8_transposed(unsigned (&to)[4], const bf16* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(from)));
}

// The operand A (16 x 16) at (row, column) of a tile [m][k].
__device__ __forceinline__ void load_a(unsigned (&a)[4], const bf16* tile, int width, int row, int column) {
  int lane = threadIdx.x & 31;
  load_4x8x8(a, tile + swizzled(row + (lane & 15), column + (lane >> 4) * 8, width));
}

// The same of a tile [k][m], whose transpose is A; `row` counts k.
__device__ __forceinline__ void load_a_transposed(unsigned (&a)[4], const bf16* tile, int width, int row, int column) {
  int lane = threadIdx.x & 31;
  load_4x8x8_transposed(
      a, tile + swizzled(row + (lane & 7) + (lane >> 4) * 8, column + ((lane >> 3) & 1) * 8, width));
}

// The operand B (k = 16, n = 16: two products) at (row, column) of a tile [n][k]; b[0..1] are of n 0..7.
__device__ __forceinline__ void load_b(unsigned (&b)[4], const bf16* tile, int width, int row, int column) {
  int lane = threadIdx.x & 31;
  load_4x8x8(b, tile + swizzled(row + (lane & 7) + (lane >> 4) * 8, column + ((lane >> 3) & 1) * 8, width));
}

// The same of a tile [k][n]; `row` counts k.
__device__ __forceinline__ void load_b_transposed(unsigned (&b)[4], const bf16* tile, int width, int row, int column) {
  int lane = threadIdx.x & 31;
  load_4x8x8_transposed(b, tile + swizzled(row + (lane & 15), column + (lane >> 4) * 8, width));
}

// The operand B of one product (k = 16, n = 8) of a tile [n][k].
__device__ __forceinline__ void load_b_half(unsigned (&b)[2], const bf16* tile, int width, int row, int column) {
  int lane = threadIdx.x & 31;
  const bf16* from = tile + swizzled(row + (lane & 7), column + ((lane >> 3) & 1) * 8, width);
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(b[0]), "=r"(b[1])
               : "r"(shared_address(from)));
}

// sum += A B. A lane holds row lane / 4, columns 2 (lane % 4) and the next in sum[0..1], and those of row lane / 4 + 8 in sum[2..3].
__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two neighbours as one word.
__device__ __forceinline__ unsigned to_bf16_pair(float first, float second) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

__device__ __forceinline__ float lower_of(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float upper_of(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// Adds the 16 x 8 of `sum` to rows of an f32 tensor in device memory: `upper` and `lower` are where column 0 of row
// lane / 4 and of row lane / 4 + 8 go, null for nowhere. Lanes trade halves, so that each adds 16 bytes of one row.
__device__ __forceinline__ void add_to_rows(const float (&sum)[4], float* upper, float* lower) {
  int lane = threadIdx.x & 31;
  bool is_odd = lane & 1;
  float first = __shfl_xor_sync(~0u, is_odd ? sum[0] : sum[2], 1);
  float second = __shfl_xor_sync(~0u, is_odd ? sum[1] : sum[3], 1);
  float* to = is_odd ? lower : upper;
  if (to == nullptr) return;
  to += (lane & 2) * 2;
  float x0 = is_odd ? first : sum[0], x1 = is_odd ? second : sum[1];
  float x2 = is_odd ? sum[2] : first, x3 = is_odd ? sum[3] : second;
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x0), "f"(x1), "f"(x2), "f"(x3) : "memory");
#else
  atomicAdd(to, x0);
  atomicAdd(to + 1, x1);
  atomicAdd(to + 2, x2);
  atomicAdd(to + 3, x3);
#endif
}
