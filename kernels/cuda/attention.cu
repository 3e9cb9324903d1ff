// Attention of one new token a sequence: RoPE, the cache's write, and attention over the cache. The contract and the reference are in
// src/decode/attention.rs.
//
// A block has a key head of a sequence with the query heads that share it, and its warps divide the keys among them, 16 at a time.
// Keys and values go from memory straight into the registers that products take them from: lane l reads WIDTH numbers of row l / 4 and
// of row l / 4 + 8. Scores are K Q^T (16 keys x 8 query heads, those above GROUP being zero); the output's sums are V^T P^T
// (dims x 8 heads), with V and P transposed in registers. Each warp keeps a softmax of its own (largest score, sum, weighted
// values), and all are merged at the end. Cached keys are on their way before the kernel in front is done.
//
// Compiled for HEAD_DIM (a power of two from 16 to 256), GROUP query heads a key head (at most 8) and WARPS warps a block.
#include "mma.cuh"
#include "overlap.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int HALF = HEAD_DIM / 2;
constexpr int WIDTH = HEAD_DIM < 32 ? 4 : 8;  // numbers that a lane reads at once, side by side
constexpr int CHUNKS = HEAD_DIM / (4 * WIDTH);
constexpr int WORDS = WIDTH / 2;
constexpr int TILE = 16;  // keys that a warp attends to at once
// Pairs of numbers to turn or to file: of the query heads, the key and the value.
constexpr int PAIRS = (GROUP + 2) * HALF;
constexpr int OWN_PAIRS = (PAIRS + THREADS - 1) / THREADS;
// Whether a tile is read while the one before is computed, for which wide heads have too few registers.
constexpr bool IS_AHEAD = HEAD_DIM <= 128;
constexpr float LOG2_E = 1.4426950408889634f;

// A lane's share of a row: pairs of neighbours.
struct Share {
  unsigned at[CHUNKS][WORDS];
};

// A lane's share of the keys or values of a tile.
struct Tile {
  Share upper, lower;
};

__device__ __forceinline__ Share load_share(const bf16* from, bool is_there) {
  Share share = {};
  if (!is_there) return share;
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    const bf16* own = from + chunk * 4 * WIDTH;
    if constexpr (WORDS == 4) {
      asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(share.at[chunk][0]), "=r"(share.at[chunk][1]), "=r"(share.at[chunk][2]), "=r"(share.at[chunk][3])
                   : "l"(own));
    } else {
      asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(share.at[chunk][0]), "=r"(share.at[chunk][1]) : "l"(own));
    }
  }
  return share;
}

// The same of a row in shared memory.
__device__ __forceinline__ Share shared_share(const bf16* from) {
  Share share;
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
    for (int word = 0; word < WORDS; ++word)
      share.at[chunk][word] = reinterpret_cast<const unsigned*>(from + chunk * 4 * WIDTH)[word];
  return share;
}

// Of an 8 x 8 matrix, a row of which four lanes hold in pairs, the transpose, held likewise.
__device__ __forceinline__ unsigned transposed(unsigned pair) {
  unsigned other;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(pair));
  return other;
}

// qkv [B, (H + 2 K) HEAD_DIM]; caches [rows, K, HEAD_DIM]; out [B, H HEAD_DIM]. Rows with a negative position are padding. Grid: (K, B).
extern "C" __global__ void __launch_bounds__(THREADS)
    attend(const bf16* qkv, const bf16* bias, const float* frequencies, float factor, const int* positions, const int* table,
           int table_width, int page_bits, float scale, bf16* k_cache, bf16* v_cache, bf16* out) {
  __shared__ __align__(16) bf16 turned[GROUP + 2][HEAD_DIM];  // query heads, key, value
  __shared__ float merged[WARPS][GROUP][HEAD_DIM];
  __shared__ float highs[WARPS][8], sums[WARPS][8];
  start_next_kernel();
  const int kv_head = blockIdx.x, kv_heads = gridDim.x, slot = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int position = positions[slot];
  const int* pages = table + (long long)slot * table_width;
  const int tiles = position < 0 ? 0 : position / TILE + 1;
  // Where in the caches token `key` of the sequence lies.
  const auto row_of = [&](int key) {
    const long long row = ((long long)pages[key >> page_bits] << page_bits) + (key & ((1 << page_bits) - 1));
    return (row * kv_heads + kv_head) * HEAD_DIM;
  };
  // All but the new token, which is not there yet. The table is not read beyond the sequence's end.
  const auto load_tile = [&](int index, Tile& k, Tile& v) {
    if (index < tiles) {
      const int key = index * TILE + lane / 4;
      const long long at = row_of(min(key, position)) + (lane & 3) * WIDTH;
      const long long below = row_of(min(key + 8, position)) + (lane & 3) * WIDTH;
      k.upper = load_share(k_cache + at, key < position);
      k.lower = load_share(k_cache + below, key + 8 < position);
      v.upper = load_share(v_cache + at, key < position);
      v.lower = load_share(v_cache + below, key + 8 < position);
    }
  };
  Tile next_k = {}, next_v = {};
  load_tile(warp, next_k, next_v);
  float cosine[OWN_PAIRS], sine[OWN_PAIRS];
#pragma unroll
  for (int i = 0; i < OWN_PAIRS; ++i) {
    const float angle = (float)position * frequencies[(threadIdx.x + i * THREADS) % HALF];
    cosine[i] = rounded(cosf(angle) * factor);
    sine[i] = rounded(sinf(angle) * factor);
  }

  wait_for_kernels_before();
  bf16* to = out + ((long long)slot * kv_heads + kv_head) * GROUP * HEAD_DIM;
  if (position < 0) {
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) to[i] = 0;
    return;
  }
  const long long new_row = row_of(position);
#pragma unroll
  for (int i = 0; i < OWN_PAIRS; ++i) {
    const int pair = threadIdx.x + i * THREADS, part = pair / HALF, dim = pair % HALF;
    if (pair >= PAIRS) continue;
    // qkv holds all queries, then all keys, then all values.
    const int head = part < GROUP ? kv_head * GROUP + part : part * kv_heads + kv_head;
    const bf16* own = qkv + (long long)slot * (GROUP + 2) * kv_heads * HEAD_DIM + head * HEAD_DIM + dim;
    float first = to_float(own[0]), second = to_float(own[HALF]);
    if (bias) {
      first = rounded(first + to_float(bias[head * HEAD_DIM + dim]));
      second = rounded(second + to_float(bias[head * HEAD_DIM + dim + HALF]));
    }
    bf16 first_turned = to_bf16(first), second_turned = to_bf16(second);
    if (part <= GROUP) {
      // Rounded after each operation, as the learner's pass does.
      first_turned = to_bf16(rounded(first * cosine[i]) + rounded(-second * sine[i]));
      second_turned = to_bf16(rounded(second * cosine[i]) + rounded(first * sine[i]));
    }
    turned[part][dim] = first_turned;
    turned[part][dim + HALF] = second_turned;
    if (part >= GROUP) {
      bf16* cache = part == GROUP ? k_cache : v_cache;
      cache[new_row + dim] = first_turned;
      cache[new_row + dim + HALF] = second_turned;
    }
  }
  __syncthreads();

  Share query = {};
  if (lane / 4 < GROUP) query = shared_share(&turned[lane / 4][(lane & 3) * WIDTH]);
  // Of the heads 2 (lane % 4) and the next.
  float high[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  float weighted[CHUNKS][WORDS / 2][4] = {};
  for (int index = warp; index < tiles; index += WARPS) {
    Tile k = next_k, v = next_v;
    if (IS_AHEAD) load_tile(index + WARPS, next_k, next_v);
    const int key = index * TILE + lane / 4;
    const bf16 *new_k = &turned[GROUP][(lane & 3) * WIDTH], *new_v = &turned[GROUP + 1][(lane & 3) * WIDTH];
    if (key == position) k.upper = shared_share(new_k), v.upper = shared_share(new_v);
    if (key + 8 == position) k.lower = shared_share(new_k), v.lower = shared_share(new_v);
    float scores[4] = {};
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
      for (int word = 0; word < WORDS; word += 2) {
        const unsigned a[4] = {k.upper.at[chunk][word], k.lower.at[chunk][word], k.upper.at[chunk][word + 1],
                               k.lower.at[chunk][word + 1]};
        multiply(scores, a, query.at[chunk][word], query.at[chunk][word + 1]);
      }
    float shrink[2];
#pragma unroll
    for (int head = 0; head < 2; ++head) {
      float& upper = scores[head];
      float& lower = scores[2 + head];
      upper = key <= position ? upper * scale * LOG2_E : -INFINITY;
      lower = key + 8 <= position ? lower * scale * LOG2_E : -INFINITY;
      float top = fmaxf(upper, lower);
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
      top = fmaxf(top, high[head]);
      shrink[head] = exp2f(high[head] - top);
      high[head] = top;
      upper = exp2f(upper - top);
      lower = exp2f(lower - top);
      sum[head] = sum[head] * shrink[head] + upper + lower;
    }
    const unsigned of_upper = transposed(to_bf16_pair(scores[0], scores[1]));
    const unsigned of_lower = transposed(to_bf16_pair(scores[2], scores[3]));
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
      for (int word = 0; word < WORDS; word += 2) {
        float(&own)[4] = weighted[chunk][word / 2];
        own[0] *= shrink[0], own[1] *= shrink[1], own[2] *= shrink[0], own[3] *= shrink[1];
        const unsigned a[4] = {transposed(v.upper.at[chunk][word]), transposed(v.upper.at[chunk][word + 1]),
                               transposed(v.lower.at[chunk][word]), transposed(v.lower.at[chunk][word + 1])};
        multiply(own, a, of_upper, of_lower);
      }
    if (!IS_AHEAD) load_tile(index + WARPS, next_k, next_v);
  }

#pragma unroll
  for (int own = 0; own < 2; ++own) {
    float total = sum[own];
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) total += __shfl_xor_sync(~0u, total, offset);
    const int head = (lane & 3) * 2 + own;
    if (lane < 4) highs[warp][head] = high[own], sums[warp][head] = total;
    if (head < GROUP) {
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
        for (int word = 0; word < WORDS; ++word) {
          // Where this word of row lane / 4 of the transpose was: lane / 8 is the lane that read it, of four.
          const int dim = (chunk * 4 + lane / 8) * WIDTH + word * 2 + lane / 4 % 2;
          merged[warp][head][dim] = weighted[chunk][word / 2][word % 2 * 2 + own];
        }
    }
  }
  __syncthreads();
  for (int index = threadIdx.x; index < GROUP * HALF; index += THREADS) {
    const int head = index / HALF, dim = index % HALF * 2;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, highs[w][head]);
    float first = 0, second = 0, total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      // 0 of a warp without keys.
      const float shrink = exp2f(highs[w][head] - top);
      first += merged[w][head][dim] * shrink;
      second += merged[w][head][dim + 1] * shrink;
      total += sums[w][head] * shrink;
    }
    reinterpret_cast<unsigned*>(to)[index] = to_bf16_pair(first / total, second / total);
  }
}
