// What the indexer learns from while attention is dense: the probability of every key a query sees, summed over the main heads.
// Contract and reference are in src/dsa/gpu/dense.rs. No tensor of heads x queries x keys: first the softmaxes' denominators, a
// block for a head; then the sums, a block for some queries and keys, which goes through the heads and adds up in registers.
#include "dsa_tiles.cuh"

// Width of heads, a multiple of 16.
#ifndef DIM
#define DIM 192
#endif

constexpr int QUERIES = 64;
constexpr int KEYS = 64;
// 16 queries and half of the keys for each warp.
constexpr int SLICES = 2;
constexpr int OWN_KEYS = KEYS / SLICES;
constexpr int TILE = 64 * padded(DIM);
constexpr float LOG2_E = 1.4426950408889634f;

// Which keys the rows see: row r is token `first` + r, as in dsa_indexer.cu.
struct Sight {
  const long long* branch_starts;
  int first, trunk_len;
};

// scores of this warp's 16 queries and 32 keys in powers of two, -inf where a query does not see a key.
__device__ __forceinline__ void masked_scores(float (&scores)[OWN_KEYS / 8][4], const bf16* queries, const bf16* keys, int row,
                                              int slice, int first_row, int first_key, int rows, const Sight& sight,
                                              float to_log2) {
  const int lane = threadIdx.x % 32;
  multiply_rows<OWN_KEYS / 8, DIM>(scores, queries, row, keys, slice * OWN_KEYS);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int of_row = first_row + row + lane / 4 + 8 * half;
    const int query = sight.first + of_row;
    const long long branch_start = of_row < rows ? sight.branch_starts[of_row] : 0;
#pragma unroll
    for (int n = 0; n < OWN_KEYS / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = first_key + slice * OWN_KEYS + n * 8 + (lane & 3) * 2 + i;
        const bool is_seen = of_row < rows && key <= query && (key < sight.trunk_len || key >= branch_start);
        float& score = scores[n][2 * half + i];
        score = is_seen ? score * to_log2 : -INFINITY;
      }
  }
}

// lse [rows, heads] f32, base 2. q [rows, heads, DIM], k [num_keys, kv_heads, DIM]. Grid: blocks of rows x heads.
extern "C" __global__ void __launch_bounds__(THREADS)
    dense_lse(const bf16* q, const bf16* k, const long long* branch_starts, int rows, int num_keys, int first, int trunk_len,
              int heads, int kv_heads, float scale, float* lse) {
  extern __shared__ __align__(128) bf16 shared[];
  bf16* queries = shared;
  bf16* stages = queries + TILE;
  float* tops = reinterpret_cast<float*>(stages + 2 * TILE);
  float* totals = tops + SLICES * QUERIES;

  const int first_row = blockIdx.x * QUERIES, head = blockIdx.y;
  const Sight sight = {branch_starts, first, trunk_len};
  const bf16* of_head = k + (long long)(head / (heads / kv_heads)) * DIM;
  const long long stride = (long long)kv_heads * DIM;
  const int seen = min(num_keys, first + min(first_row + QUERIES, rows));
  const int num_blocks = (seen + KEYS - 1) / KEYS;
  copy_rows<QUERIES, DIM>(queries, q + ((long long)first_row * heads + head) * DIM, (long long)heads * DIM, rows - first_row);
  copy_rows<KEYS, DIM>(stages, of_head, stride, seen);
  commit_copies();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp / SLICES * 16, slice = warp % SLICES;
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  for (int block = 0; block < num_blocks; ++block) {
    wait_for_copies<0>();
    __syncthreads();
    if (block + 1 < num_blocks) {
      const int next = (block + 1) * KEYS;
      copy_rows<KEYS, DIM>(stages + (~block & 1) * TILE, of_head + next * stride, stride, seen - next);
    }
    commit_copies();
    float scores[OWN_KEYS / 8][4] = {};
    masked_scores(scores, queries, stages + (block & 1) * TILE, row, slice, first_row, block * KEYS, rows, sight, scale * LOG2_E);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = top[half];
#pragma unroll
      for (int n = 0; n < OWN_KEYS / 8; ++n) largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      if (largest == -INFINITY) continue;
      total[half] *= exp2f(top[half] - largest);
      top[half] = largest;
#pragma unroll
      for (int n = 0; n < OWN_KEYS / 8; ++n)
        total[half] += exp2f(scores[n][2 * half] - largest) + exp2f(scores[n][2 * half + 1] - largest);
    }
  }
  // A row's keys lie with four lanes of two warps.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int other = 1; other < 4; other *= 2) {
      const float its_top = __shfl_xor_sync(~0u, top[half], other), its_total = __shfl_xor_sync(~0u, total[half], other);
      const float both = fmaxf(top[half], its_top);
      if (both > -INFINITY) total[half] = total[half] * exp2f(top[half] - both) + its_total * exp2f(its_top - both);
      top[half] = both;
    }
    if ((lane & 3) == 0) {
      tops[slice * QUERIES + row + lane / 4 + 8 * half] = top[half];
      totals[slice * QUERIES + row + lane / 4 + 8 * half] = total[half];
    }
  }
  __syncthreads();
  const int at = threadIdx.x;
  if (at < QUERIES && first_row + at < rows) {
    const float both = fmaxf(tops[at], tops[QUERIES + at]);
    const float sum = totals[at] * exp2f(tops[at] - both) + totals[QUERIES + at] * exp2f(tops[QUERIES + at] - both);
    lse[(long long)(first_row + at) * heads + head] = both + log2f(sum);
  }
}

// sums [rows, num_keys] f32, 0 where a row does not see a key. Grid: blocks of keys x blocks of rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    dense_head_sums(const bf16* q, const bf16* k, const long long* branch_starts, int rows, int num_keys, int first, int trunk_len,
                    int heads, int kv_heads, float scale, const float* lse, float* sums) {
  extern __shared__ __align__(128) bf16 shared[];
  const int first_key = blockIdx.x * KEYS, first_row = blockIdx.y * QUERIES;
  const Sight sight = {branch_starts, first, trunk_len};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp / SLICES * 16, slice = warp % SLICES;
  const int group = heads / kv_heads;
  const auto copy_head = [&](int head) {
    bf16* stage = shared + (head & 1) * 2 * TILE;
    copy_rows<QUERIES, DIM>(stage, q + ((long long)first_row * heads + head) * DIM, (long long)heads * DIM, rows - first_row);
    copy_rows<KEYS, DIM>(stage + TILE, k + ((long long)first_key * kv_heads + head / group) * DIM, (long long)kv_heads * DIM,
                         num_keys - first_key);
  };

  float all[OWN_KEYS / 8][4] = {};
  // No row sees a key behind it.
  if (first_key <= first + min(first_row + QUERIES, rows) - 1) {
    copy_head(0);
    commit_copies();
    for (int head = 0; head < heads; ++head) {
      wait_for_copies<0>();
      __syncthreads();
      if (head + 1 < heads) copy_head(head + 1);
      commit_copies();
      const bf16* stage = shared + (head & 1) * 2 * TILE;
      float scores[OWN_KEYS / 8][4] = {};
      masked_scores(scores, stage, stage + TILE, row, slice, first_row, first_key, rows, sight, scale * LOG2_E);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int of_row = first_row + row + lane / 4 + 8 * half;
        const float own_lse = of_row < rows ? lse[(long long)of_row * heads + head] : INFINITY;
#pragma unroll
        for (int n = 0; n < OWN_KEYS / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) all[n][2 * half + i] += exp2f(scores[n][2 * half + i] - own_lse);
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int of_row = first_row + row + lane / 4 + 8 * half;
    if (of_row >= rows) continue;
#pragma unroll
    for (int n = 0; n < OWN_KEYS / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = first_key + slice * OWN_KEYS + n * 8 + (lane & 3) * 2 + i;
        if (key < num_keys) sums[(long long)of_row * num_keys + key] = all[n][2 * half + i];
      }
  }
}
