// What the kernels over selected keys share: a block of threads works for one query and up to 64 of its rows, which are
// heads that share keys, and walks over the query's selected keys in blocks of TILE_KEYS.
#pragma once
#include "mma.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
// Numbers a row of a tile has room for.
__device__ constexpr int padded(int width) { return (width + 63) / 64 * 64; }

// Entries of a query's selection that are present: they come before those that are -1. All threads call it.
__device__ __forceinline__ int count_present(const int* selected, int num_selected) {
  int present = 0;
  for (int start = 0; start < num_selected; start += THREADS) {
    int at = start + threadIdx.x;
    int found = __syncthreads_count(at < num_selected && selected[at] >= 0);
    present += found;
    if (found < THREADS) break;
  }
  return present;
}

// Rows `0..COUNT` of a tile from as many rows of device memory, `stride` numbers apart; zeros from row `present` on.
template <int COUNT, int WIDTH>
__device__ __forceinline__ void copy_rows(bf16* tile, const bf16* from, long long stride, int present) {
  constexpr int CHUNKS = WIDTH / 8;
  for (int at = threadIdx.x; at < COUNT * CHUNKS; at += THREADS) {
    int row = at / CHUNKS, column = at % CHUNKS * 8;
    bool is_there = row < present;
    copy_async(tile + swizzled(row, column, padded(WIDTH)), from + (is_there ? row * stride + column : 0), is_there);
  }
}

// The rows named by `selected[0..KEYS]` of a tensor whose rows are `stride` numbers apart; zeros from entry `present` on.
template <int KEYS, int WIDTH>
__device__ __forceinline__ void gather_rows(bf16* tile, const bf16* from, long long stride, const int* selected,
                                            int present) {
  // Eight threads for a row: 128 bytes of it at once.
  const int lane = threadIdx.x % 8;
#pragma unroll
  for (int first = 0; first < KEYS; first += THREADS / 8) {
    int row = first + threadIdx.x / 8;
    if (KEYS % (THREADS / 8) != 0 && row >= KEYS) break;
    bool is_there = row < present;
    const bf16* source = from + (is_there ? selected[row] * stride : 0);
#pragma unroll
    for (int column = lane * 8; column < WIDTH; column += 64)
      copy_async(tile + swizzled(row, column, padded(WIDTH)), source + column, is_there);
  }
}

// sum[n] += (16 rows from `row` of `a`) (8 rows from `key` + 8 n of `b`)^T over WIDTH numbers.
template <int TILES, int WIDTH>
__device__ __forceinline__ void multiply_rows(float (&sum)[TILES][4], const bf16* a, int row, const bf16* b, int key) {
#pragma unroll 9
  for (int k = 0; k < WIDTH; k += 16) {
    unsigned of_a[4];
    load_a(of_a, a, padded(WIDTH), row, k);
    if constexpr (TILES == 1) {
      unsigned of_b[2];
      load_b_half(of_b, b, padded(WIDTH), key, k);
      multiply(sum[0], of_a, of_b[0], of_b[1]);
    } else {
#pragma unroll
      for (int n = 0; n < TILES; n += 2) {
        unsigned of_b[4];
        load_b(of_b, b, padded(WIDTH), key + 8 * n, k);
        multiply(sum[n], of_a, of_b[0], of_b[1]);
        multiply(sum[n + 1], of_a, of_b[2], of_b[3]);
      }
    }
  }
}
