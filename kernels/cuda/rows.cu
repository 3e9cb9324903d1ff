// What a decode step does row by row besides products: embedding, norm, SwiGLU. Contracts and references are in
// src/decode/. Widths are multiples of 8.
#include "bf16.cuh"
#include "overlap.cuh"

constexpr int ROW_THREADS = 128;

// x[b] = table[tokens[b]], where a token below zero, -1 - r, stands for drawn[r]. Grid: rows.
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    embed(const bf16* table, const int* tokens, const int* drawn, int width, bf16* x) {
  start_next_kernel();
  wait_for_kernels_before();
  int token = tokens[blockIdx.x];
  if (token < 0) token = drawn[-1 - token];
  const bf16* from = table + (long long)token * width;
  bf16* to = x + (long long)blockIdx.x * width;
  for (int i = threadIdx.x * 8; i < width; i += ROW_THREADS * 8) store_eight(to + i, load_eight(from + i));
}

// x += y where there is y; h = rms_norm(x) * weight. Grid: rows.
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    add_rms_norm(bf16* x, const bf16* y, const bf16* weight, float eps, int width, bf16* h) {
  __shared__ float parts[ROW_THREADS / 32];
  start_next_kernel();
  wait_for_kernels_before();
  const long long row = (long long)blockIdx.x * width;
  float squares = 0;
  for (int i = threadIdx.x * 8; i < width; i += ROW_THREADS * 8) {
    Eight own = load_eight(x + row + i);
    if (y) {
      const Eight other = load_eight(y + row + i);
#pragma unroll
      for (int j = 0; j < 8; ++j) own.at[j] = to_bf16(to_float(own.at[j]) + to_float(other.at[j]));
      store_eight(x + row + i, own);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += to_float(own.at[j]) * to_float(own.at[j]);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < ROW_THREADS / 32; ++i) sum += parts[i];
  const float scale = 1.0f / sqrtf(sum / width + eps);
  for (int i = threadIdx.x * 8; i < width; i += ROW_THREADS * 8) {
    // Each thread reads what it wrote itself.
    Eight own = load_eight(x + row + i);
    const Eight factor = load_eight(weight + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) own.at[j] = to_bf16(rounded(to_float(own.at[j]) * scale) * to_float(factor.at[j]));
    store_eight(h + row + i, own);
  }
}

// out = silu(gate) * up with both [rows, 2 width] beside each other. Grid: anything, one thread for 8 numbers.
extern "C" __global__ void __launch_bounds__(256)
    swiglu(const bf16* both, int width, long long num_eights, bf16* out) {
  start_next_kernel();
  wait_for_kernels_before();
  const long long index = (long long)blockIdx.x * 256 + threadIdx.x;
  if (index >= num_eights) return;
  const int per_row = width / 8;
  const long long row = index / per_row;
  const int column = (int)(index % per_row) * 8;
  Eight gate = load_eight(both + row * 2 * width + column);
  const Eight up = load_eight(both + row * 2 * width + width + column);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float x = to_float(gate.at[j]);
    gate.at[j] = to_bf16(rounded(x / (1.0f + expf(-x))) * to_float(up.at[j]));
  }
  store_eight(out + row * width + column, gate);
}
