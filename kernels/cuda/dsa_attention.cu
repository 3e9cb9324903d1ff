// Attention of each query over the keys selected for it, forward and backward; contracts and references are in
// src/dsa/gpu/attention.rs. The heads of a query that share a key head are the rows of matrix products (ROWS of them at a time,
// 16, 32 or 64), its selected keys the columns: they are gathered into shared memory, and no score leaves the card's
// registers. Warps divide the keys of a block among them for scores, and the width of values for outputs.
#include "dsa_tiles.cuh"

// Width of queries and keys, a multiple of 16.
#ifndef DIM
#define DIM 576
#endif
// Width of values, a multiple of 16.
#ifndef V_DIM
#define V_DIM 512
#endif
#ifndef ROWS
#define ROWS 64
#endif
// Whether values are tensors of their own, or the leading columns of the keys.
#ifndef OWN_VALUES
#define OWN_VALUES 0
#endif

constexpr int ROW_GROUPS = ROWS / 16;
// Warps of one row group.
constexpr int SLICES = WARPS / ROW_GROUPS;
constexpr float LOG2_E = 1.4426950408889634f;

// What all kernels here are told: q [Q, heads, DIM]; k [S, kv_heads, DIM]; v [S, kv_heads, V_DIM]; selected [Q, num_selected],
// -1 from the first absent entry on; scale of scores.
#define PROBLEM                                                                                                     \
  const bf16 *q, const bf16 *k, const bf16 *v, const int *selected, int heads, int kv_heads, int num_selected, float scale
struct Problem {
  const bf16* q;
  const bf16* k;
  const bf16* v;
  const int* selected;
  int heads, kv_heads, num_selected;
  float scale;
};

// The heads that a block of threads works for.
struct HeadRows {
  int kv_head, first_head, present;
  __device__ __forceinline__ HeadRows(const Problem& p, int part) {
    int group = p.heads / p.kv_heads, parts = (group + ROWS - 1) / ROWS;
    kv_head = part / parts;
    int first = part % parts * ROWS;
    first_head = kv_head * group + first;
    present = min(ROWS, group - first);
  }
};

// ---- forward: out [Q, heads, V_DIM] bf16, lse [Q, heads] f32 = log(sum of exp(scale q.k)). Grid: queries x parts of the heads.

constexpr int FORWARD_KEYS = 64;
// Numbers of bf16 in a stage: keys, and values beside them.
constexpr int FORWARD_STAGE = FORWARD_KEYS * (padded(DIM) + OWN_VALUES * padded(V_DIM));
constexpr int FORWARD_PAIRS = (V_DIM / 16 + SLICES - 1) / SLICES;

__device__ __forceinline__ void gather_stage(bf16* stage, const Problem& p, int kv_head, const int* selected, int present) {
  gather_rows<FORWARD_KEYS, DIM>(stage, p.k + (long long)kv_head * DIM, (long long)p.kv_heads * DIM, selected, present);
  if (OWN_VALUES)
    gather_rows<FORWARD_KEYS, V_DIM>(stage + FORWARD_KEYS * padded(DIM), p.v + (long long)kv_head * V_DIM,
                                     (long long)p.kv_heads * V_DIM, selected, present);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) dsa_attention(PROBLEM, bf16* out, float* lse) {
  const Problem p = {q, k, v, selected, heads, kv_heads, num_selected, scale};
  extern __shared__ __align__(128) bf16 shared[];
  bf16* queries = shared;
  bf16* stages = queries + ROWS * padded(DIM);
  bf16* probs = stages + 2 * FORWARD_STAGE;
  float* slice_max = reinterpret_cast<float*>(probs + ROWS * FORWARD_KEYS);
  float* slice_sum = slice_max + SLICES * ROWS;

  const long long query = blockIdx.x;
  const HeadRows rows(p, blockIdx.y);
  selected += query * num_selected;
  const int present = count_present(selected, p.num_selected);
  const int num_blocks = (present + FORWARD_KEYS - 1) / FORWARD_KEYS;

  copy_rows<ROWS, DIM>(queries, p.q + (query * p.heads + rows.first_head) * DIM, DIM, rows.present);
  gather_stage(stages, p, rows.kv_head, selected, present);
  commit_copies();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp / SLICES * 16, slice = warp % SLICES;
  constexpr int KEYS = FORWARD_KEYS / SLICES;
  const int upper = row + lane / 4;
  const float to_log2 = p.scale * LOG2_E;

  float sums[FORWARD_PAIRS][2][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  for (int block = 0; block < num_blocks; ++block) {
    bf16* keys = stages + (block & 1) * FORWARD_STAGE;
    wait_for_copies<0>();
    __syncthreads();
    if (block + 1 < num_blocks) {
      int next = (block + 1) * FORWARD_KEYS;
      gather_stage(stages + (~block & 1) * FORWARD_STAGE, p, rows.kv_head, selected + next, present - next);
    }
    commit_copies();

    float scores[KEYS / 8][4] = {};
    multiply_rows<KEYS / 8, DIM>(scores, queries, row, keys, slice * KEYS);
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int key = block * FORWARD_KEYS + slice * KEYS + n * 8 + (lane & 3) * 2 + (i & 1);
        scores[n][i] = key < present ? scores[n][i] * to_log2 : -INFINITY;
        largest[i >> 1] = fmaxf(largest[i >> 1], scores[n][i]);
      }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(~0u, largest[half], 1));
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(~0u, largest[half], 2));
      if ((lane & 3) == 0) slice_max[slice * ROWS + upper + 8 * half] = largest[half];
    }
    __syncthreads();
    float shrink[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float now = top[half];
#pragma unroll
      for (int s = 0; s < SLICES; ++s) now = fmaxf(now, slice_max[s * ROWS + upper + 8 * half]);
      shrink[half] = exp2f(top[half] - now);
      top[half] = now;
      total[half] *= shrink[half];
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = exp2f(scores[n][i] - top[i >> 1]);
        total[i >> 1] += scores[n][i];
      }
      int column = slice * KEYS + n * 8 + (lane & 3) * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<unsigned*>(probs + swizzled(upper + 8 * half, column, FORWARD_KEYS)) =
            to_bf16_pair(scores[n][2 * half], scores[n][2 * half + 1]);
    }
    __syncthreads();

    const bf16* values = OWN_VALUES ? keys + FORWARD_KEYS * padded(DIM) : keys;
    constexpr int V_WIDTH = padded(OWN_VALUES ? V_DIM : DIM);
#pragma unroll
    for (int pair = 0; pair < FORWARD_PAIRS; ++pair)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[pair][n][i] *= shrink[i >> 1];
#pragma unroll
    for (int k = 0; k < FORWARD_KEYS; k += 16) {
      unsigned of_p[4];
      load_a(of_p, probs, FORWARD_KEYS, row, k);
#pragma unroll
      for (int pair = 0; pair < FORWARD_PAIRS; ++pair) {
        int column = (slice + pair * SLICES) * 16;
        if (V_DIM / 16 % SLICES != 0 && column >= V_DIM) break;
        unsigned of_v[4];
        load_b_transposed(of_v, values, V_WIDTH, k, column);
        multiply(sums[pair][0], of_p, of_v[0], of_v[1]);
        multiply(sums[pair][1], of_p, of_v[2], of_v[3]);
      }
    }
  }

  // The sums of a row lie with all lanes of a quarter and all slices.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] += __shfl_xor_sync(~0u, total[half], 1);
    total[half] += __shfl_xor_sync(~0u, total[half], 2);
    if ((lane & 3) == 0) slice_sum[slice * ROWS + upper + 8 * half] = total[half];
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int of_row = upper + 8 * half;
    if (of_row >= rows.present) continue;
    float whole = 0;
#pragma unroll
    for (int s = 0; s < SLICES; ++s) whole += slice_sum[s * ROWS + of_row];
    const long long head = query * p.heads + rows.first_head + of_row;
    if (slice == 0 && (lane & 3) == 0) lse[head] = (top[half] + log2f(whole)) / LOG2_E;
    const float share = 1 / whole;
#pragma unroll
    for (int pair = 0; pair < FORWARD_PAIRS; ++pair) {
      int column = (slice + pair * SLICES) * 16 + (lane & 3) * 2;
      if (V_DIM / 16 % SLICES != 0 && column >= V_DIM) break;
#pragma unroll
      for (int n = 0; n < 2; ++n)
        *reinterpret_cast<unsigned*>(out + head * V_DIM + column + 8 * n) =
            to_bf16_pair(sums[pair][n][2 * half] * share, sums[pair][n][2 * half + 1] * share);
    }
  }
}

// ---- sum over all heads of the probability of each selected key: sums [Q, num_selected] f32, 0 at absent entries. Grid: queries.

extern "C" __global__ void __launch_bounds__(THREADS, 1) dsa_head_sums(PROBLEM, const float* lse, float* sums) {
  const Problem p = {q, k, v, selected, heads, kv_heads, num_selected, scale};
  extern __shared__ __align__(128) bf16 shared[];
  constexpr int STAGE = FORWARD_KEYS * padded(DIM);
  bf16* queries = shared;
  bf16* stages = queries + ROWS * padded(DIM);
  float* of_groups = reinterpret_cast<float*>(stages + 2 * STAGE);
  float* own_lse = of_groups + ROW_GROUPS * FORWARD_KEYS;
  float* all = own_lse + ROWS;

  const long long query = blockIdx.x;
  selected += query * num_selected;
  const int present = count_present(selected, p.num_selected);
  const int num_blocks = (present + FORWARD_KEYS - 1) / FORWARD_KEYS;
  for (int at = threadIdx.x; at < p.num_selected; at += THREADS) all[at] = 0;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = warp / SLICES, row = group * 16, slice = warp % SLICES;
  constexpr int KEYS = FORWARD_KEYS / SLICES;
  const int parts = p.kv_heads * ((p.heads / p.kv_heads + ROWS - 1) / ROWS);
  for (int part = 0; part < parts; ++part) {
    const HeadRows rows(p, part);
    const bf16* of_head = p.k + (long long)rows.kv_head * DIM;
    const long long stride = (long long)p.kv_heads * DIM;
    __syncthreads();
    copy_rows<ROWS, DIM>(queries, p.q + (query * p.heads + rows.first_head) * DIM, DIM, rows.present);
    gather_rows<FORWARD_KEYS, DIM>(stages, of_head, stride, selected, present);
    commit_copies();
    // Rows beyond the heads have no probability.
    for (int at = threadIdx.x; at < ROWS; at += THREADS)
      own_lse[at] = at < rows.present ? lse[query * p.heads + rows.first_head + at] * LOG2_E : INFINITY;
    for (int block = 0; block < num_blocks; ++block) {
      bf16* keys = stages + (block & 1) * STAGE;
      wait_for_copies<0>();
      __syncthreads();
      if (block + 1 < num_blocks) {
        int next = (block + 1) * FORWARD_KEYS;
        gather_rows<FORWARD_KEYS, DIM>(stages + (~block & 1) * STAGE, of_head, stride, selected + next, present - next);
      }
      commit_copies();
      float scores[KEYS / 8][4] = {};
      multiply_rows<KEYS / 8, DIM>(scores, queries, row, keys, slice * KEYS);
      const float lse_upper = own_lse[row + lane / 4], lse_lower = own_lse[row + lane / 4 + 8];
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float sum = exp2f(scores[n][i] * p.scale * LOG2_E - lse_upper) +
                      exp2f(scores[n][i + 2] * p.scale * LOG2_E - lse_lower);
#pragma unroll
          for (int other = 4; other < 32; other *= 2) sum += __shfl_xor_sync(~0u, sum, other);
          if (lane < 4) of_groups[group * FORWARD_KEYS + slice * KEYS + n * 8 + lane * 2 + i] = sum;
        }
      __syncthreads();
      int key = block * FORWARD_KEYS + threadIdx.x;
      if (threadIdx.x < FORWARD_KEYS && key < present) {
        float sum = all[key];
#pragma unroll
        for (int g = 0; g < ROW_GROUPS; ++g) sum += of_groups[g * FORWARD_KEYS + threadIdx.x];
        all[key] = sum;
      }
    }
  }
  __syncthreads();
  for (int at = threadIdx.x; at < p.num_selected; at += THREADS) sums[query * p.num_selected + at] = all[at];
}

// ---- backward: from the gradient of out, dq [Q, heads, DIM] bf16, and added to dk [S, kv_heads, DIM] f32 (to dv, where values are
// tensors of their own). Grid: queries x parts of the heads.

constexpr int BACKWARD_KEYS = ROW_GROUPS == 1 ? 64 : 32;
constexpr int BACKWARD_STAGE = BACKWARD_KEYS * (padded(DIM) + OWN_VALUES * padded(V_DIM));
// Columns of dq, in pairs of 8, that a warp holds.
constexpr int DQ_PAIRS = (DIM / 16 + SLICES - 1) / SLICES;
// Warps that share 16 keys of dk.
constexpr int KEY_GROUPS = BACKWARD_KEYS / 16;
constexpr int COLUMN_GROUPS = WARPS / KEY_GROUPS;

__device__ __forceinline__ void gather_backward(bf16* stage, const Problem& p, int kv_head, const int* selected, int present) {
  gather_rows<BACKWARD_KEYS, DIM>(stage, p.k + (long long)kv_head * DIM, (long long)p.kv_heads * DIM, selected, present);
  if (OWN_VALUES)
    gather_rows<BACKWARD_KEYS, V_DIM>(stage + BACKWARD_KEYS * padded(DIM), p.v + (long long)kv_head * V_DIM,
                                      (long long)p.kv_heads * V_DIM, selected, present);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    dsa_attention_backward(PROBLEM, const bf16* out, const float* lse, const bf16* dout, bf16* dq, float* dk, float* dv) {
  const Problem p = {q, k, v, selected, heads, kv_heads, num_selected, scale};
  extern __shared__ __align__(128) bf16 shared[];
  bf16* queries = shared;
  bf16* douts = queries + ROWS * padded(DIM);
  bf16* stages = douts + ROWS * padded(V_DIM);
  // Rows of probs and of score gradients have room for 64, as the swizzle wants.
  bf16* probs = stages + 2 * BACKWARD_STAGE;
  bf16* dscores = probs + ROWS * 64;
  float* own_lse = reinterpret_cast<float*>(dscores + ROWS * 64);
  float* deltas = own_lse + ROWS;

  const long long query = blockIdx.x;
  const HeadRows rows(p, blockIdx.y);
  selected += query * num_selected;
  const int present = count_present(selected, p.num_selected);
  const int num_blocks = (present + BACKWARD_KEYS - 1) / BACKWARD_KEYS;
  const long long first = query * p.heads + rows.first_head;

  copy_rows<ROWS, DIM>(queries, p.q + first * DIM, DIM, rows.present);
  copy_rows<ROWS, V_DIM>(douts, dout + first * V_DIM, V_DIM, rows.present);
  gather_backward(stages, p, rows.kv_head, selected, present);
  commit_copies();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // delta = out . dout of each row; a warp for a row.
  for (int at = warp; at < ROWS; at += WARPS) {
    float delta = 0;
    if (at < rows.present)
      for (int column = lane * 8; column < V_DIM; column += 256) {
        Eight a = load_eight(out + (first + at) * V_DIM + column), b = load_eight(dout + (first + at) * V_DIM + column);
#pragma unroll
        for (int i = 0; i < 8; ++i) delta += to_float(a.at[i]) * to_float(b.at[i]);
      }
    delta = warp_sum(delta);
    if (lane == 0) {
      deltas[at] = delta;
      own_lse[at] = at < rows.present ? lse[first + at] * LOG2_E : INFINITY;
    }
  }

  const int row = warp / SLICES * 16, slice = warp % SLICES;
  constexpr int KEYS = BACKWARD_KEYS / SLICES;
  const int upper = row + lane / 4;
  const int key_row = warp % KEY_GROUPS * 16, column_group = warp / KEY_GROUPS;

  float sums[DQ_PAIRS][2][4] = {};
  for (int block = 0; block < num_blocks; ++block) {
    bf16* keys = stages + (block & 1) * BACKWARD_STAGE;
    const bf16* values = OWN_VALUES ? keys + BACKWARD_KEYS * padded(DIM) : keys;
    constexpr int V_WIDTH = padded(OWN_VALUES ? V_DIM : DIM);
    wait_for_copies<0>();
    __syncthreads();
    if (block + 1 < num_blocks) {
      int next = (block + 1) * BACKWARD_KEYS;
      gather_backward(stages + (~block & 1) * BACKWARD_STAGE, p, rows.kv_head, selected + next, present - next);
    }
    commit_copies();

    {
      float scores[KEYS / 8][4] = {}, dprobs[KEYS / 8][4] = {};
      multiply_rows<KEYS / 8, DIM>(scores, queries, row, keys, slice * KEYS);
#pragma unroll 9
      for (int k = 0; k < V_DIM; k += 16) {
        unsigned of_d[4];
        load_a(of_d, douts, padded(V_DIM), row, k);
        if constexpr (KEYS == 8) {
          unsigned of_v[2];
          load_b_half(of_v, values, V_WIDTH, slice * KEYS, k);
          multiply(dprobs[0], of_d, of_v[0], of_v[1]);
        } else {
#pragma unroll
          for (int n = 0; n < KEYS / 8; n += 2) {
            unsigned of_v[4];
            load_b(of_v, values, V_WIDTH, slice * KEYS + 8 * n, k);
            multiply(dprobs[n], of_d, of_v[0], of_v[1]);
            multiply(dprobs[n + 1], of_d, of_v[2], of_v[3]);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
        int column = slice * KEYS + n * 8 + (lane & 3) * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int of_row = upper + 8 * half;
          float prob[2], dscore[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            bool is_there = block * BACKWARD_KEYS + column + i < present;
            prob[i] = is_there ? exp2f(scores[n][2 * half + i] * p.scale * LOG2_E - own_lse[of_row]) : 0;
            dscore[i] = prob[i] * (dprobs[n][2 * half + i] - deltas[of_row]) * p.scale;
          }
          int place = swizzled(of_row, column, 64);
          *reinterpret_cast<unsigned*>(probs + place) = to_bf16_pair(prob[0], prob[1]);
          *reinterpret_cast<unsigned*>(dscores + place) = to_bf16_pair(dscore[0], dscore[1]);
        }
      }
    }
    __syncthreads();

    // dq += dscores k
#pragma unroll
    for (int k = 0; k < BACKWARD_KEYS; k += 16) {
      unsigned of_s[4];
      load_a(of_s, dscores, 64, row, k);
#pragma unroll
      for (int pair = 0; pair < DQ_PAIRS; ++pair) {
        int column = (slice + pair * SLICES) * 16;
        if (DIM / 16 % SLICES != 0 && column >= DIM) break;
        unsigned of_k[4];
        load_b_transposed(of_k, keys, padded(DIM), k, column);
        multiply(sums[pair][0], of_s, of_k[0], of_k[1]);
        multiply(sums[pair][1], of_s, of_k[2], of_k[3]);
      }
    }
    // dk += dscores^T q, dv += probs^T dout: 16 keys and a share of the columns for each warp.
    unsigned of_s[ROW_GROUPS][4], of_p[ROW_GROUPS][4];
#pragma unroll
    for (int g = 0; g < ROW_GROUPS; ++g) {
      load_a_transposed(of_s[g], dscores, 64, g * 16, key_row);
      load_a_transposed(of_p[g], probs, 64, g * 16, key_row);
    }
    const int key = block * BACKWARD_KEYS + key_row + lane / 4;
    const long long upper_key = key < present ? (long long)selected[key] * p.kv_heads + rows.kv_head : -1;
    const long long lower_key = key + 8 < present ? (long long)selected[key + 8] * p.kv_heads + rows.kv_head : -1;
    float* dk_upper = upper_key < 0 ? nullptr : dk + upper_key * DIM;
    float* dk_lower = lower_key < 0 ? nullptr : dk + lower_key * DIM;
#pragma unroll 1
    for (int column = column_group * 16; column < DIM; column += COLUMN_GROUPS * 16) {
      float added[2][4] = {};
#pragma unroll
      for (int g = 0; g < ROW_GROUPS; ++g) {
        unsigned of_q[4];
        load_b_transposed(of_q, queries, padded(DIM), g * 16, column);
        multiply(added[0], of_s[g], of_q[0], of_q[1]);
        multiply(added[1], of_s[g], of_q[2], of_q[3]);
      }
      if (!OWN_VALUES && column < V_DIM) {
#pragma unroll
        for (int g = 0; g < ROW_GROUPS; ++g) {
          unsigned of_d[4];
          load_b_transposed(of_d, douts, padded(V_DIM), g * 16, column);
          multiply(added[0], of_p[g], of_d[0], of_d[1]);
          multiply(added[1], of_p[g], of_d[2], of_d[3]);
        }
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
        add_to_rows(added[n], dk_upper ? dk_upper + column + 8 * n : nullptr, dk_lower ? dk_lower + column + 8 * n : nullptr);
    }
    if (OWN_VALUES) {
      float* dv_upper = upper_key < 0 ? nullptr : dv + upper_key * V_DIM;
      float* dv_lower = lower_key < 0 ? nullptr : dv + lower_key * V_DIM;
#pragma unroll 1
      for (int column = column_group * 16; column < V_DIM; column += COLUMN_GROUPS * 16) {
        float added[2][4] = {};
#pragma unroll
        for (int g = 0; g < ROW_GROUPS; ++g) {
          unsigned of_d[4];
          load_b_transposed(of_d, douts, padded(V_DIM), g * 16, column);
          multiply(added[0], of_p[g], of_d[0], of_d[1]);
          multiply(added[1], of_p[g], of_d[2], of_d[3]);
        }
#pragma unroll
        for (int n = 0; n < 2; ++n)
          add_to_rows(added[n], dv_upper ? dv_upper + column + 8 * n : nullptr, dv_lower ? dv_lower + column + 8 * n : nullptr);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int of_row = upper + 8 * half;
    if (of_row >= rows.present) continue;
#pragma unroll
    for (int pair = 0; pair < DQ_PAIRS; ++pair) {
      int column = (slice + pair * SLICES) * 16 + (lane & 3) * 2;
      if (DIM / 16 % SLICES != 0 && column >= DIM) break;
#pragma unroll
      for (int n = 0; n < 2; ++n)
        *reinterpret_cast<unsigned*>(dq + (first + of_row) * DIM + column + 8 * n) =
            to_bf16_pair(sums[pair][n][2 * half], sums[pair][n][2 * half + 1]);
    }
  }
}
