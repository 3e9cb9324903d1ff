// The kernels of dsa_attention.cu for Hopper's own products (wgmma) at DeepSeek-V3.2's widths: queries and keys of 576 numbers, of which
// the leading 512 are the values, and 64 heads a block. Same arguments, same results up to the order of sums. Two warpgroups: each
// computes the scores of half of a block's keys, then a share of the columns of outputs, or gradients, from all of them.
#include "dsa_tiles.cuh"
#include "wgmma.cuh"

constexpr int DIM = 576;
constexpr int V_DIM = 512;
constexpr int ROWS = 64;
constexpr int KEYS = 64;
constexpr int OWN_KEYS = KEYS / 2;
constexpr int TILE = KEYS * DIM;
constexpr float LOG2_E = 1.4426950408889634f;

// 64 rows of WIDTH numbers into tiles; zeros from row `present` on.
template <int WIDTH>
__device__ __forceinline__ void copy_tiles(bf16* to, const bf16* from, int present) {
  constexpr int CHUNKS = WIDTH / 8;
  for (int at = threadIdx.x; at < ROWS * CHUNKS; at += THREADS) {
    const int row = at / CHUNKS, column = at % CHUNKS * 8;
    const bool is_there = row < present;
    copy_async(to + tiled(row, column, ROWS), from + (is_there ? row * WIDTH + column : 0), is_there);
  }
}

// The rows named by `selected[0..64]`; zeros from entry `present` on. Eight threads for a row: 128 bytes of it at once.
__device__ __forceinline__ void gather_tiles(bf16* to, const bf16* from, const int* selected, int present) {
  const int lane = threadIdx.x % 8;
#pragma unroll
  for (int first = 0; first < KEYS; first += THREADS / 8) {
    const int row = first + threadIdx.x / 8;
    const bool is_there = row < present;
    const bf16* source = from + (is_there ? (long long)selected[row] * DIM : 0);
#pragma unroll
    for (int column = 0; column < DIM; column += 64)
      copy_async(to + tiled(row, column + lane * 8, KEYS), source + column + lane * 8, is_there);
  }
}

// sums [64 x 32] += (64 rows) (this warpgroup's keys)^T over the leading WIDTH numbers.
template <int WIDTH>
__device__ __forceinline__ void multiply_keys(float (&sums)[OWN_KEYS / 2], const bf16* rows, const bf16* keys, int slice) {
#pragma unroll
  for (int column = 0; column < WIDTH; column += 16) {
    const int at = column / 64 * 64 * 64 + column % 64;
    multiply_64x32(sums, row_operand(rows + at), row_operand(keys + at + slice * OWN_KEYS * 64));
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    dsa_attention(const bf16* q, const bf16* k, const bf16* v, const int* selected, int heads, int kv_heads, int num_selected,
                  float scale, bf16* out, float* lse) {
  extern __shared__ __align__(1024) bf16 shared[];
  bf16* queries = shared;
  bf16* stages = queries + ROWS * DIM;
  bf16* probs = stages + 2 * TILE;
  float* slice_max = reinterpret_cast<float*>(probs + ROWS * KEYS);
  float* slice_sum = slice_max + 2 * ROWS;

  const long long query = blockIdx.x;
  const int first_head = blockIdx.y * ROWS, rows = min(ROWS, heads - first_head);
  selected += query * num_selected;
  const int present = count_present(selected, num_selected);
  const int num_blocks = (present + KEYS - 1) / KEYS;
  copy_tiles<DIM>(queries, q + (query * heads + first_head) * DIM, rows);
  gather_tiles(stages, k, selected, present);
  commit_copies();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int slice = warp / 4, upper = warp % 4 * 16 + lane / 4;
  const float to_log2 = scale * LOG2_E;

  float sums[V_DIM / 4] = {};
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  for (int block = 0; block < num_blocks; ++block) {
    const bf16* keys = stages + (block & 1) * TILE;
    wait_for_copies<0>();
    publish_shared();
    __syncthreads();
    if (block + 1 < num_blocks) {
      const int next = (block + 1) * KEYS;
      gather_tiles(stages + (~block & 1) * TILE, k, selected + next, present - next);
    }
    commit_copies();

    float scores[OWN_KEYS / 2] = {};
    begin_products();
    multiply_keys<DIM>(scores, queries, keys, slice);
    end_products();
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < OWN_KEYS / 2; ++i) {
      const int key = block * KEYS + slice * OWN_KEYS + i / 4 * 8 + (lane & 3) * 2 + (i & 1);
      const int half = (i >> 1) & 1;
      scores[i] = key < present ? scores[i] * to_log2 : -INFINITY;
      largest[half] = fmaxf(largest[half], scores[i]);
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
      const int row = upper + 8 * half;
      const float now = fmaxf(top[half], fmaxf(slice_max[row], slice_max[ROWS + row]));
      shrink[half] = exp2f(top[half] - now);
      top[half] = now;
      total[half] *= shrink[half];
    }
#pragma unroll
    for (int i = 0; i < OWN_KEYS / 2; ++i) {
      const int half = (i >> 1) & 1;
      scores[i] = exp2f(scores[i] - top[half]);
      total[half] += scores[i];
    }
#pragma unroll
    for (int i = 0; i < OWN_KEYS / 2; i += 2) {
      const int column = slice * OWN_KEYS + i / 4 * 8 + (lane & 3) * 2;
      *reinterpret_cast<unsigned*>(probs + tiled(upper + 8 * ((i >> 1) & 1), column, ROWS)) = to_bf16_pair(scores[i], scores[i + 1]);
    }
#pragma unroll
    for (int i = 0; i < V_DIM / 4; ++i) sums[i] *= shrink[(i >> 1) & 1];
    publish_shared();
    __syncthreads();

    begin_products();
#pragma unroll
    for (int key = 0; key < KEYS; key += 16)
      multiply_64x256_b(sums, row_operand(probs + key), column_operand(keys + slice * 4 * KEYS * 64 + key * 64, KEYS * 128));
    end_products();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] += __shfl_xor_sync(~0u, total[half], 1);
    total[half] += __shfl_xor_sync(~0u, total[half], 2);
    if ((lane & 3) == 0) slice_sum[slice * ROWS + upper + 8 * half] = total[half];
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = upper + 8 * half;
    if (row >= rows) continue;
    const float whole = slice_sum[row] + slice_sum[ROWS + row];
    const long long head = query * heads + first_head + row;
    if (slice == 0 && (lane & 3) == 0) lse[head] = (top[half] + log2f(whole)) / LOG2_E;
    const float share = 1 / whole;
    bf16* own = out + head * V_DIM + slice * (V_DIM / 2) + (lane & 3) * 2;
#pragma unroll
    for (int n = 0; n < V_DIM / 16; ++n)
      *reinterpret_cast<unsigned*>(own + 8 * n) = to_bf16_pair(sums[4 * n + 2 * half] * share, sums[4 * n + 2 * half + 1] * share);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    dsa_head_sums(const bf16* q, const bf16* k, const bf16* v, const int* selected, int heads, int kv_heads, int num_selected,
                  float scale, const float* lse, float* sums) {
  extern __shared__ __align__(1024) bf16 shared[];
  bf16* queries = shared;
  bf16* stages = queries + ROWS * DIM;
  float* of_warps = reinterpret_cast<float*>(stages + 2 * TILE);
  float* own_lse = of_warps + 4 * KEYS;
  float* all = own_lse + ROWS;

  const long long query = blockIdx.x;
  selected += query * num_selected;
  const int present = count_present(selected, num_selected);
  const int num_blocks = (present + KEYS - 1) / KEYS;
  for (int at = threadIdx.x; at < num_selected; at += THREADS) all[at] = 0;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int slice = warp / 4, upper = warp % 4 * 16 + lane / 4;
  for (int first_head = 0; first_head < heads; first_head += ROWS) {
    const int rows = min(ROWS, heads - first_head);
    __syncthreads();
    copy_tiles<DIM>(queries, q + (query * heads + first_head) * DIM, rows);
    gather_tiles(stages, k, selected, present);
    commit_copies();
    // Rows beyond the heads have no probability.
    for (int at = threadIdx.x; at < ROWS; at += THREADS)
      own_lse[at] = at < rows ? lse[query * heads + first_head + at] * LOG2_E : INFINITY;
    for (int block = 0; block < num_blocks; ++block) {
      wait_for_copies<0>();
      publish_shared();
      __syncthreads();
      if (block + 1 < num_blocks) {
        const int next = (block + 1) * KEYS;
        gather_tiles(stages + (~block & 1) * TILE, k, selected + next, present - next);
      }
      commit_copies();
      float scores[OWN_KEYS / 2] = {};
      begin_products();
      multiply_keys<DIM>(scores, queries, stages + (block & 1) * TILE, slice);
      end_products();
      const float lse_upper = own_lse[upper], lse_lower = own_lse[upper + 8];
#pragma unroll
      for (int n = 0; n < OWN_KEYS / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float sum = exp2f(scores[4 * n + i] * scale * LOG2_E - lse_upper) + exp2f(scores[4 * n + 2 + i] * scale * LOG2_E - lse_lower);
#pragma unroll
          for (int other = 4; other < 32; other *= 2) sum += __shfl_xor_sync(~0u, sum, other);
          if (lane < 4) of_warps[warp % 4 * KEYS + slice * OWN_KEYS + n * 8 + lane * 2 + i] = sum;
        }
      __syncthreads();
      const int key = block * KEYS + threadIdx.x;
      if (threadIdx.x < KEYS && key < present)
        all[key] += of_warps[threadIdx.x] + of_warps[KEYS + threadIdx.x] + of_warps[2 * KEYS + threadIdx.x] + of_warps[3 * KEYS + threadIdx.x];
    }
  }
  __syncthreads();
  for (int at = threadIdx.x; at < num_selected; at += THREADS) sums[query * num_selected + at] = all[at];
}

// There is room for one block of keys beside queries and gradients: the next is gathered while this one's gradients are added up.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    dsa_attention_backward(const bf16* q, const bf16* k, const bf16* v, const int* selected, int heads, int kv_heads, int num_selected,
                           float scale, const bf16* out, const float* lse, const bf16* dout, bf16* dq, float* dk, float* dv) {
  extern __shared__ __align__(1024) bf16 shared[];
  bf16* queries = shared;
  bf16* douts = queries + ROWS * DIM;
  bf16* keys = douts + ROWS * V_DIM;
  bf16* probs = keys + TILE;
  bf16* dscores = probs + ROWS * KEYS;
  float* own_lse = reinterpret_cast<float*>(dscores + ROWS * KEYS);
  float* deltas = own_lse + ROWS;

  const long long query = blockIdx.x;
  const int first_head = blockIdx.y * ROWS, rows = min(ROWS, heads - first_head);
  const long long first = query * heads + first_head;
  selected += query * num_selected;
  const int present = count_present(selected, num_selected);
  const int num_blocks = (present + KEYS - 1) / KEYS;
  copy_tiles<DIM>(queries, q + first * DIM, rows);
  copy_tiles<V_DIM>(douts, dout + first * V_DIM, rows);
  gather_tiles(keys, k, selected, present);
  commit_copies();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // delta = out . dout of each row; a warp for a row.
  for (int at = warp; at < ROWS; at += WARPS) {
    float delta = 0;
    if (at < rows)
      for (int column = lane * 8; column < V_DIM; column += 256) {
        const Eight a = load_eight(out + (first + at) * V_DIM + column), b = load_eight(dout + (first + at) * V_DIM + column);
#pragma unroll
        for (int i = 0; i < 8; ++i) delta += to_float(a.at[i]) * to_float(b.at[i]);
      }
    delta = warp_sum(delta);
    if (lane == 0) {
      deltas[at] = delta;
      own_lse[at] = at < rows ? lse[first + at] * LOG2_E : INFINITY;
    }
  }

  const int slice = warp / 4, upper = warp % 4 * 16 + lane / 4;
  // dq: four column tiles of 64 for each warpgroup, and the last for the first one, which has less to do below.
  float sums[128] = {}, last_sums[32] = {};
  for (int block = 0; block < num_blocks; ++block) {
    wait_for_copies<0>();
    publish_shared();
    __syncthreads();
    {
      float scores[OWN_KEYS / 2] = {}, dprobs[OWN_KEYS / 2] = {};
      begin_products();
      multiply_keys<DIM>(scores, queries, keys, slice);
      multiply_keys<V_DIM>(dprobs, douts, keys, slice);
      end_products();
#pragma unroll
      for (int i = 0; i < OWN_KEYS / 2; i += 2) {
        const int row = upper + 8 * ((i >> 1) & 1), column = slice * OWN_KEYS + i / 4 * 8 + (lane & 3) * 2;
        float prob[2], dscore[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const bool is_there = block * KEYS + column + j < present;
          prob[j] = is_there ? exp2f(scores[i + j] * scale * LOG2_E - own_lse[row]) : 0;
          dscore[j] = prob[j] * (dprobs[i + j] - deltas[row]) * scale;
        }
        const int place = tiled(row, column, ROWS);
        *reinterpret_cast<unsigned*>(probs + place) = to_bf16_pair(prob[0], prob[1]);
        *reinterpret_cast<unsigned*>(dscores + place) = to_bf16_pair(dscore[0], dscore[1]);
      }
    }
    publish_shared();
    __syncthreads();

    // dq += dscores k
    begin_products();
#pragma unroll
    for (int key = 0; key < KEYS; key += 16) {
      const unsigned long long a = row_operand(dscores + key);
      multiply_64x256_b(sums, a, column_operand(keys + slice * 4 * KEYS * 64 + key * 64, KEYS * 128));
      if (slice == 0) multiply_64x64_b(last_sums, a, column_operand(keys + 8 * KEYS * 64 + key * 64, KEYS * 128));
    }
    end_products();
    __syncthreads();
    if (block + 1 < num_blocks) {
      const int next = (block + 1) * KEYS;
      gather_tiles(keys, k, selected + next, present - next);
    }
    commit_copies();

    // dk += dscores^T q, and probs^T dout in the columns that are values too; even tiles for one warpgroup, odd and the last for the other.
    const int key = block * KEYS + upper;
    float* dk_upper = key < present ? dk + (long long)selected[key] * DIM : nullptr;
    float* dk_lower = key + 8 < present ? dk + (long long)selected[key + 8] * DIM : nullptr;
#pragma unroll 1
    for (int tile = slice; tile < DIM / 64; tile += tile == 7 ? 1 : 2) {
      if (tile == 8 && slice == 0) break;
      float added[32] = {};
      begin_products();
#pragma unroll
      for (int head = 0; head < ROWS; head += 16)
        multiply_64x64_ab(added, column_operand(dscores + head * 64, ROWS * 128),
                          column_operand(queries + tile * ROWS * 64 + head * 64, ROWS * 128));
      if (tile < V_DIM / 64)
#pragma unroll
        for (int head = 0; head < ROWS; head += 16)
          multiply_64x64_ab(added, column_operand(probs + head * 64, ROWS * 128),
                            column_operand(douts + tile * ROWS * 64 + head * 64, ROWS * 128));
      end_products();
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float part[4] = {added[4 * n], added[4 * n + 1], added[4 * n + 2], added[4 * n + 3]};
        const int column = tile * 64 + 8 * n;
        add_to_rows(part, dk_upper ? dk_upper + column : nullptr, dk_lower ? dk_lower + column : nullptr);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = upper + 8 * half;
    if (row >= rows) continue;
    bf16* own = dq + (first + row) * DIM + (lane & 3) * 2;
#pragma unroll
    for (int n = 0; n < 32; ++n)
      *reinterpret_cast<unsigned*>(own + slice * 256 + 8 * n) = to_bf16_pair(sums[4 * n + 2 * half], sums[4 * n + 2 * half + 1]);
    if (slice == 0)
#pragma unroll
      for (int n = 0; n < 8; ++n)
        *reinterpret_cast<unsigned*>(own + 512 + 8 * n) = to_bf16_pair(last_sums[4 * n + 2 * half], last_sums[4 * n + 2 * half + 1]);
  }
}
