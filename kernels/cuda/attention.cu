// Attention of one new token a sequence over its cache. Contracts and references are in src/decode/attention.rs.
//
// Compiled for HEAD_DIM (a power of two from 16 to 256) and GROUP query heads a key head.
#include "bf16.cuh"

constexpr int LANES = HEAD_DIM / 8;  // that share a key
constexpr int KEYS_AT_ONCE = 32 / LANES;
constexpr int WARPS = 8;
constexpr float LOG2_E = 1.4426950408889634f;

// Row of the cache that holds token `position` of a sequence: pages of 2^page_bits rows.
__device__ __forceinline__ long long row_of(const int* pages, int page_bits, int position) {
  return ((long long)pages[position >> page_bits] << page_bits) + (position & ((1 << page_bits) - 1));
}

// Adds biases where there are any, turns queries and keys by their position, and files keys and values in the
// cache. Rows with a negative position are padding. Grid: rows; one thread a pair of dimensions of every head.
//
// qkv [B, (heads + 2 kv_heads) HEAD_DIM]: queries are turned in place. Caches [rows, kv_heads, HEAD_DIM].
extern "C" __global__ void rope_and_cache(bf16* qkv, const bf16* bias, const float* frequencies, float factor,
                                          const int* positions, int heads, int kv_heads, bf16* k_cache, bf16* v_cache,
                                          const int* table, int table_width, int page_bits) {
  constexpr int HALF = HEAD_DIM / 2;
  const int slot = blockIdx.x;
  const int position = positions[slot];
  if (position < 0) return;
  const int num_heads = heads + 2 * kv_heads;
  const long long first_head = row_of(table + (long long)slot * table_width, page_bits, position) * kv_heads;
  for (int index = threadIdx.x; index < num_heads * HALF; index += blockDim.x) {
    const int head = index / HALF, i = index % HALF;
    bf16* own = qkv + ((long long)slot * num_heads + head) * HEAD_DIM;
    float first = to_float(own[i]), second = to_float(own[i + HALF]);
    if (bias) {
      first = rounded(first + to_float(bias[head * HEAD_DIM + i]));
      second = rounded(second + to_float(bias[head * HEAD_DIM + i + HALF]));
    }
    if (head >= heads + kv_heads) {
      bf16* to = v_cache + (first_head + head - heads - kv_heads) * HEAD_DIM;
      to[i] = to_bf16(first);
      to[i + HALF] = to_bf16(second);
      continue;
    }
    const float angle = (float)position * frequencies[i];
    const float cosine = rounded(cosf(angle) * factor), sine = rounded(sinf(angle) * factor);
    // Rounded after each operation, as the learner's pass does.
    const bf16 turned_first = to_bf16(rounded(first * cosine) + rounded(-second * sine));
    const bf16 turned_second = to_bf16(rounded(second * cosine) + rounded(first * sine));
    bf16* to = head < heads ? own : k_cache + (first_head + head - heads) * HEAD_DIM;
    to[i] = turned_first;
    to[i + HALF] = turned_second;
  }
}

// out = softmax(scale q k^T) v over the keys 0..=position. Grid: (kv_heads, rows).
//
// A warp reads KEYS_AT_ONCE keys at a time, LANES lanes a key; every group of lanes keeps a softmax of its own
// (largest score, sum, weighted values), and all are merged at the end.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    attend(const bf16* qkv, long long q_stride, const bf16* k_cache, const bf16* v_cache, const int* table,
           int table_width, int page_bits, const int* positions, float scale, bf16* out) {
  __shared__ float merged[WARPS][GROUP][HEAD_DIM];
  __shared__ float largest[WARPS][GROUP], sums[WARPS][GROUP];
  const int kv_head = blockIdx.x, slot = blockIdx.y;
  const int num_keys = positions[slot] + 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = lane % LANES;
  const bf16* q = qkv + slot * q_stride + (long long)kv_head * GROUP * HEAD_DIM + part * 8;

  float query[GROUP][8], weighted[GROUP][8], high[GROUP], sum[GROUP];
#pragma unroll
  for (int g = 0; g < GROUP; ++g) {
    const Eight eight = load_eight(q + g * HEAD_DIM);
    high[g] = -INFINITY;
    sum[g] = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      query[g][j] = to_float(eight.at[j]) * scale * LOG2_E;
      weighted[g][j] = 0;
    }
  }

  constexpr int STEP = WARPS * KEYS_AT_ONCE;
  int key = warp * KEYS_AT_ONCE + lane / LANES;
  const int rounds = (num_keys + STEP - 1) / STEP;
  // Where keys lie, in eights. STEP and pages are powers of two, so a round moves a thread's keys by the same number
  // of pages, or of rows in a page, whatever its own page and row were: those are kept apart.
  const unsigned row_eights = gridDim.x * (HEAD_DIM / 8), page_mask = (1u << page_bits) - 1;
  const unsigned own = (key & page_mask) * row_eights + kv_head * (HEAD_DIM / 8) + part;
  const int* pages = table + (long long)slot * table_width + (key >> page_bits);
  const auto place = [&](int page, int moved) {
    return ((unsigned)page << page_bits) * row_eights + (moved & page_mask) * row_eights + own;
  };
  Eight k = {}, v = {};
  if (key < num_keys) {
    const unsigned at = place(pages[0], 0);
    k = load_eight(k_cache + at * 8ull);
    v = load_eight(v_cache + at * 8ull);
  }
  // The table is read a round before the keys that it leads to.
  int next_page = key + STEP < num_keys ? pages[STEP >> page_bits] : 0;
  int moved = STEP;
  for (int round = 0; round < rounds; ++round) {
    const bool is_key = key < num_keys;
    const Eight own_k = k, own_v = v;
    key += STEP;
    // On its way while this round computes.
    if (key < num_keys) {
      const unsigned at = place(next_page, moved);
      k = load_eight(k_cache + at * 8ull);
      v = load_eight(v_cache + at * 8ull);
    }
    moved += STEP;
    if (key + STEP < num_keys) next_page = pages[moved >> page_bits];
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
      float score = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) score += query[g][j] * to_float(own_k.at[j]);
#pragma unroll
      for (int offset = LANES / 2; offset > 0; offset /= 2) score += __shfl_xor_sync(~0u, score, offset);
      if (!is_key) continue;
      if (score > high[g]) {
        const float shrink = exp2f(high[g] - score);
        high[g] = score;
        sum[g] *= shrink;
#pragma unroll
        for (int j = 0; j < 8; ++j) weighted[g][j] *= shrink;
      }
      const float weight = exp2f(score - high[g]);
      sum[g] += weight;
#pragma unroll
      for (int j = 0; j < 8; ++j) weighted[g][j] += weight * to_float(own_v.at[j]);
    }
  }

  // Lanes that hold the same part of different keys, then the warps.
#pragma unroll
  for (int g = 0; g < GROUP; ++g) {
    float top = high[g];
#pragma unroll
    for (int offset = LANES; offset < 32; offset *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
    const float shrink = high[g] == -INFINITY ? 0.0f : exp2f(high[g] - top);
    float total = sum[g] * shrink;
#pragma unroll
    for (int offset = LANES; offset < 32; offset *= 2) total += __shfl_xor_sync(~0u, total, offset);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float value = weighted[g][j] * shrink;
#pragma unroll
      for (int offset = LANES; offset < 32; offset *= 2) value += __shfl_xor_sync(~0u, value, offset);
      if (lane < LANES) merged[warp][g][part * 8 + j] = value;
    }
    if (lane == 0) {
      largest[warp][g] = top;
      sums[warp][g] = total;
    }
  }
  __syncthreads();
  bf16* to = out + ((long long)slot * gridDim.x + kv_head) * GROUP * HEAD_DIM;
  for (int index = threadIdx.x; index < GROUP * HEAD_DIM; index += WARPS * 32) {
    const int g = index / HEAD_DIM, i = index % HEAD_DIM;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, largest[w][g]);
    float value = 0, total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      const float shrink = largest[w][g] == -INFINITY ? 0.0f : exp2f(largest[w][g] - top);
      value += merged[w][g][i] * shrink;
      total += sums[w][g] * shrink;
    }
    // Padding has seen no key.
    to[index] = num_keys > 0 ? to_bf16(value / total) : to_bf16(0.0f);
  }
}
