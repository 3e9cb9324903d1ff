// The lightning indexer on the card: scores, exact selection of the highest, and the loss on the selected keys with its
// gradient. Contracts and references are in src/dsa/gpu/indexer.rs.
#include "dsa_tiles.cuh"

// Indexer heads, at most 64, and their width, a multiple of 16.
#ifndef INDEX_HEADS
#define INDEX_HEADS 64
#endif
#ifndef DIM
#define DIM 128
#endif

// Rows of the heads' products: 16, 32 or 64. Those beyond the heads are zeros.
constexpr int HEADS = INDEX_HEADS <= 16 ? 16 : INDEX_HEADS <= 32 ? 32 : 64;

// Whether a query sees a key: tokens of one document, of which the first `trunk_len` are seen by all that follow and the
// others only by those of the same branch.
__device__ __forceinline__ bool is_visible(int key, int query, int trunk_len, long long branch_start) {
  return key <= query && (key < trunk_len || key >= branch_start);
}

// ---- scores [rows, num_keys] f32 = sum_j w[t, j] relu(q[t, j] . k[s]), -inf where t does not see s. q [rows, INDEX_HEADS, DIM], w [rows, INDEX_HEADS],
// k [num_keys, DIM], branch_starts [rows] i64; row 0 is token `first`. Grid: blocks of SCORE_KEYS keys x blocks of SCORE_QUERIES rows.
//
// Keys are the rows of the products and stay in registers; heads are the columns, so that a lane sums over most heads itself.

constexpr int SCORE_KEYS = 32 * WARPS;
constexpr int SCORE_QUERIES = 32;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    index_scores(const bf16* q, const float* w, const bf16* k, const long long* branch_starts, int rows, int num_keys,
                 int first, int trunk_len, float* scores) {
  extern __shared__ __align__(128) bf16 shared[];
  constexpr int STAGE = HEADS * padded(DIM);
  bf16* keys = shared;
  bf16* stages = keys + SCORE_KEYS * padded(DIM);
  float* weights = reinterpret_cast<float*>(stages + 2 * STAGE);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_key = blockIdx.x * SCORE_KEYS, first_row = blockIdx.y * SCORE_QUERIES;
  const int count = min(SCORE_QUERIES, rows - first_row);
  // No row sees a key behind it.
  const bool is_blank = first_key > first + first_row + count - 1;
  if (!is_blank) {
    copy_rows<SCORE_KEYS, DIM>(keys, k + (long long)first_key * DIM, DIM, num_keys - first_key);
    copy_rows<HEADS, DIM>(stages, q + (long long)first_row * INDEX_HEADS * DIM, DIM, INDEX_HEADS);
    commit_copies();
    for (int at = threadIdx.x; at < count * HEADS; at += THREADS) {
      int head = at % HEADS;
      weights[at] = head < INDEX_HEADS ? w[(long long)(first_row + at / HEADS) * INDEX_HEADS + head] : 0;
    }
    wait_for_copies<0>();
    __syncthreads();
  }
  unsigned of_k[2][DIM / 16][4];
  if (!is_blank)
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int c = 0; c < DIM / 16; ++c) load_a(of_k[m][c], keys, padded(DIM), warp * 32 + m * 16, c * 16);

  for (int at = 0; at < count; ++at) {
    const int row = first_row + at, query = first + row;
    const bf16* heads = stages + (at & 1) * STAGE;
    if (!is_blank) {
      wait_for_copies<0>();
      __syncthreads();
      if (at + 1 < count)
        copy_rows<HEADS, DIM>(stages + (~at & 1) * STAGE, q + (long long)(row + 1) * INDEX_HEADS * DIM, DIM, INDEX_HEADS);
      commit_copies();
    }
    float sums[2][2] = {};
    const bool is_seen = !is_blank && first_key + warp * 32 <= query;
    if (is_seen) {
#pragma unroll 2
      for (int head = 0; head < HEADS; head += 16) {
        float products[2][2][4] = {};
#pragma unroll
        for (int c = 0; c < DIM / 16; ++c) {
          unsigned of_q[4];
          load_b(of_q, heads, padded(DIM), head, c * 16);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            multiply(products[m][0], of_k[m][c], of_q[0], of_q[1]);
            multiply(products[m][1], of_k[m][c], of_q[2], of_q[3]);
          }
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float2 weight = *reinterpret_cast<const float2*>(weights + at * HEADS + head + 8 * n + (lane & 3) * 2);
#pragma unroll
          for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              sums[m][half] += fmaxf(products[m][n][2 * half], 0) * weight.x + fmaxf(products[m][n][2 * half + 1], 0) * weight.y;
        }
      }
    }
    const long long branch_start = branch_starts[row];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = sums[m][half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        int key = first_key + warp * 32 + m * 16 + half * 8 + lane / 4;
        if ((lane & 3) == 0 && key < num_keys)
          scores[(long long)row * num_keys + key] = is_visible(key, query, trunk_len, branch_start) ? sum : -INFINITY;
      }
  }
}

// ---- selection: the `topk` highest of each row of scores [rows, num_keys], equal ones by the lower index, as selected [rows, topk] i32,
// ascending, -1 last; -inf is never selected. Row 0 is token `first`: no row has a finite score behind its own token. A block for a row.
//
// The order of floats is that of integers made of their bits. Three passes find the topk-th highest integer digit by digit
// (11, 11 and 10 bits); a last one writes what lies above it, and of its equals as many as are missing.

constexpr int SELECT_THREADS = 512;
constexpr int SELECT_WARPS = SELECT_THREADS / 32;
constexpr int BINS = 2048;

// Ascending with the score; equal for zeros of both signs.
__device__ __forceinline__ unsigned ordered(float score) {
  unsigned bits = __float_as_uint(score + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// For every thread the sum of `value` over the threads before it; the sum over all goes to `total`. `scratch` has room for a number a warp.
__device__ __forceinline__ unsigned sum_before(unsigned value, unsigned* scratch, unsigned& total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned upto = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    unsigned before = __shfl_up_sync(~0u, upto, offset);
    if (lane >= offset) upto += before;
  }
  __syncthreads();
  if (lane == 31) scratch[warp] = upto;
  __syncthreads();
  unsigned before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < SELECT_WARPS; ++w) {
    unsigned of_warp = scratch[w];
    before += w < warp ? of_warp : 0;
    total += of_warp;
  }
  return before + upto - value;
}

extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    select_topk(const float* scores, int num_keys, int topk, int first, int* selected) {
  __shared__ unsigned bins[BINS];
  __shared__ unsigned scratch[SELECT_WARPS];
  __shared__ unsigned found_bin, found_above;
  constexpr unsigned NOTHING = 0x007fffffu;  // ordered(-inf)

  const long long row = blockIdx.x;
  const float* own = scores + row * num_keys;
  int* out = selected + row * topk;
  const int seen = min(num_keys, first + (int)row + 1);

  // Bits of the topk-th highest found so far, from the top; how many lie above all that share them.
  unsigned prefix = 0, above = 0;
  bool is_whole = false;
  int bits_left = 32;
  for (int pass = 0; pass < 3; ++pass) {
    const int digit_bits = pass < 2 ? 11 : 10;
    for (int at = threadIdx.x; at < BINS; at += SELECT_THREADS) bins[at] = 0;
    __syncthreads();
    const int shift = bits_left - digit_bits;
    for (int at = threadIdx.x; at < seen; at += SELECT_THREADS) {
      unsigned value = ordered(own[at]);
      bool counts = value > NOTHING && (pass == 0 || value >> bits_left == prefix);
      if (counts) atomicAdd(&bins[(value >> shift) & ((1u << digit_bits) - 1)], 1u);
    }
    __syncthreads();
    // From the highest bin down: thread i has bins BINS - 4 i - 1 to BINS - 4 i - 4.
    const int highest = BINS - 4 * (int)threadIdx.x - 1;
    unsigned own_bins[4], sum = 0, total;
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += own_bins[i] = bins[highest - i];
    unsigned before = above + sum_before(sum, scratch, total);
    if (pass == 0 && total <= (unsigned)topk) {
      is_whole = true;
      break;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (before < (unsigned)topk && before + own_bins[i] >= (unsigned)topk) {
        found_bin = highest - i;
        found_above = before;
      }
      before += own_bins[i];
    }
    __syncthreads();
    prefix = prefix << digit_bits | found_bin;
    above = found_above;
    bits_left = shift;
    __syncthreads();
  }

  const unsigned missing = topk - above;
  unsigned written = 0, ties = 0;
  for (int start = 0; start < seen; start += SELECT_THREADS) {
    int at = start + threadIdx.x;
    unsigned value = at < seen ? ordered(own[at]) : 0;
    bool is_above = value > (is_whole ? NOTHING : prefix), is_tie = !is_whole && value == prefix && at < seen;
    // Both counts in one sum.
    unsigned total, before = sum_before((unsigned)is_above << 16 | (unsigned)is_tie, scratch, total);
    unsigned ties_before = ties + (before & 0xffff);
    unsigned place = written + (before >> 16) + min(ties_before, missing);
    if (is_above || (is_tie && ties_before < missing)) out[place] = at;
    written += total >> 16;
    ties += total & 0xffff;
  }
  const unsigned count = written + min(ties, is_whole ? 0 : missing);
  for (int at = count + threadIdx.x; at < topk; at += SELECT_THREADS) out[at] = -1;
}

// ---- loss: losses [rows] = sum_s p log(p / softmax(I)[s]), p = head_sums / num_heads, and its gradients by the scores [rows, width] f32,
// 0 where no key is. Entry n of a row is key selected[n], or key n itself where `selected` is null; `scores` [rows, num_keys] as `index_scores`
// made them, `head_sums` [rows, width]. A block for a row.

// The sum, or the largest, over a block of threads.
template <bool LARGEST>
__device__ __forceinline__ float over_block(float x, float* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    float other = __shfl_xor_sync(~0u, x, offset);
    x = LARGEST ? fmaxf(x, other) : x + other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float all = scratch[0];
#pragma unroll
  for (int w = 1; w < WARPS; ++w) all = LARGEST ? fmaxf(all, scratch[w]) : all + scratch[w];
  return all;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    index_loss(const float* scores, const int* selected, const float* head_sums, int num_keys, int width, float num_heads,
               float* losses, float* gradients) {
  __shared__ float scratch[WARPS];
  const long long row = blockIdx.x;
  scores += row * num_keys;
  head_sums += row * width;
  gradients += row * width;
  if (selected) selected += row * width;
  const auto score_of = [&](int at) {
    if (!selected) return scores[at];
    const int key = selected[at];
    return key < 0 ? -INFINITY : scores[key];
  };

  float largest = -INFINITY;
  for (int at = threadIdx.x; at < width; at += THREADS) largest = fmaxf(largest, score_of(at));
  largest = over_block<true>(largest, scratch);
  float sum = 0;
  for (int at = threadIdx.x; at < width; at += THREADS) sum += expf(score_of(at) - largest);
  const float log_sum = largest + logf(over_block<false>(sum, scratch));
  float loss = 0;
  for (int at = threadIdx.x; at < width; at += THREADS) {
    const float score = score_of(at);
    float gradient = 0;
    if (score > -INFINITY) {
      const float target = head_sums[at] / num_heads, log_prob = score - log_sum;
      loss += target * (logf(fmaxf(target, 1e-10f)) - log_prob);
      gradient = expf(log_prob) - target;
    }
    gradients[at] = gradient;
  }
  loss = over_block<false>(loss, scratch);
  if (threadIdx.x == 0) losses[row] = loss;
}

// ---- from the gradients by the scores those of what they were made of: dq [rows, INDEX_HEADS, DIM] f32, dw [rows, INDEX_HEADS] f32; added
// to dk [keys, DIM] f32. Entries as above, of which the first `first` + row + 1 at most are keys; row 0 is token `first`. A block for a row.

constexpr int LOSS_ROW_GROUPS = HEADS / 16;
constexpr int LOSS_SLICES = WARPS / LOSS_ROW_GROUPS;
constexpr int LOSS_KEYS = 64;
constexpr int LOSS_PAIRS = (DIM / 16 + LOSS_SLICES - 1) / LOSS_SLICES;
constexpr int LOSS_COLUMN_GROUPS = WARPS / (LOSS_KEYS / 16);

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    index_loss_backward(const bf16* q, const float* w, const bf16* k, const int* selected, const float* gradients, int width,
                        int first, float* dq, float* dw, float* dk) {
  extern __shared__ __align__(128) bf16 shared[];
  constexpr int STAGE = LOSS_KEYS * padded(DIM);
  bf16* heads = shared;
  bf16* stages = heads + HEADS * padded(DIM);
  bf16* dscores = stages + 2 * STAGE;
  float* weights = reinterpret_cast<float*>(dscores + HEADS * LOSS_KEYS);
  float* weight_sums = weights + HEADS;

  const long long row = blockIdx.x;
  gradients += row * width;
  if (selected) selected += row * width;
  const int present = selected ? count_present(selected, width) : min(width, first + (int)row + 1);
  // The keys of a block of entries.
  const auto gather = [&](bf16* stage, int entry) {
    if (selected)
      gather_rows<LOSS_KEYS, DIM>(stage, k, DIM, selected + entry, present - entry);
    else
      copy_rows<LOSS_KEYS, DIM>(stage, k + (long long)entry * DIM, DIM, present - entry);
  };

  copy_rows<HEADS, DIM>(heads, q + row * INDEX_HEADS * DIM, DIM, INDEX_HEADS);
  gather(stages, 0);
  commit_copies();
  for (int at = threadIdx.x; at < HEADS; at += THREADS) weights[at] = at < INDEX_HEADS ? w[row * INDEX_HEADS + at] : 0;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int head_row = warp / LOSS_SLICES * 16, slice = warp % LOSS_SLICES;
  constexpr int KEYS = LOSS_KEYS / LOSS_SLICES;
  const int upper = head_row + lane / 4;
  const int key_row = warp % (LOSS_KEYS / 16) * 16, column_group = warp / (LOSS_KEYS / 16);
  const int num_blocks = (present + LOSS_KEYS - 1) / LOSS_KEYS;
  float sums[LOSS_PAIRS][2][4] = {}, weight_sum[2] = {};
  for (int block = 0; block < num_blocks; ++block) {
    bf16* keys = stages + (block & 1) * STAGE;
    wait_for_copies<0>();
    __syncthreads();
    if (block + 1 < num_blocks) {
      gather(stages + (~block & 1) * STAGE, (block + 1) * LOSS_KEYS);
    }
    commit_copies();

    float products[KEYS / 8][4] = {};
    multiply_rows<KEYS / 8, DIM>(products, heads, head_row, keys, slice * KEYS);
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
      int column = slice * KEYS + n * 8 + (lane & 3) * 2;
      float gradient[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int at = block * LOSS_KEYS + column + i;
        gradient[i] = at < present ? gradients[at] : 0;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float pair[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float product = products[n][2 * half + i];
          weight_sum[half] += gradient[i] * fmaxf(product, 0);
          pair[i] = product > 0 ? gradient[i] * weights[upper + 8 * half] : 0;
        }
        *reinterpret_cast<unsigned*>(dscores + swizzled(upper + 8 * half, column, LOSS_KEYS)) = to_bf16_pair(pair[0], pair[1]);
      }
    }
    __syncthreads();

#pragma unroll
    for (int key = 0; key < LOSS_KEYS; key += 16) {
      unsigned of_s[4];
      load_a(of_s, dscores, LOSS_KEYS, head_row, key);
#pragma unroll
      for (int pair = 0; pair < LOSS_PAIRS; ++pair) {
        int column = (slice + pair * LOSS_SLICES) * 16;
        if (DIM / 16 % LOSS_SLICES != 0 && column >= DIM) break;
        unsigned of_k[4];
        load_b_transposed(of_k, keys, padded(DIM), key, column);
        multiply(sums[pair][0], of_s, of_k[0], of_k[1]);
        multiply(sums[pair][1], of_s, of_k[2], of_k[3]);
      }
    }
    unsigned of_s[LOSS_ROW_GROUPS][4];
#pragma unroll
    for (int g = 0; g < LOSS_ROW_GROUPS; ++g) load_a_transposed(of_s[g], dscores, LOSS_KEYS, g * 16, key_row);
    const int key = block * LOSS_KEYS + key_row + lane / 4;
    float* dk_upper = key < present ? dk + (long long)(selected ? selected[key] : key) * DIM : nullptr;
    float* dk_lower = key + 8 < present ? dk + (long long)(selected ? selected[key + 8] : key + 8) * DIM : nullptr;
#pragma unroll 1
    for (int column = column_group * 16; column < DIM; column += LOSS_COLUMN_GROUPS * 16) {
      float added[2][4] = {};
#pragma unroll
      for (int g = 0; g < LOSS_ROW_GROUPS; ++g) {
        unsigned of_q[4];
        load_b_transposed(of_q, heads, padded(DIM), g * 16, column);
        multiply(added[0], of_s[g], of_q[0], of_q[1]);
        multiply(added[1], of_s[g], of_q[2], of_q[3]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
        add_to_rows(added[n], dk_upper ? dk_upper + column + 8 * n : nullptr, dk_lower ? dk_lower + column + 8 * n : nullptr);
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    weight_sum[half] += __shfl_xor_sync(~0u, weight_sum[half], 1);
    weight_sum[half] += __shfl_xor_sync(~0u, weight_sum[half], 2);
    if ((lane & 3) == 0) weight_sums[slice * HEADS + upper + 8 * half] = weight_sum[half];
    if (upper + 8 * half >= INDEX_HEADS) continue;
#pragma unroll
    for (int pair = 0; pair < LOSS_PAIRS; ++pair) {
      int column = (slice + pair * LOSS_SLICES) * 16 + (lane & 3) * 2;
      if (DIM / 16 % LOSS_SLICES != 0 && column >= DIM) break;
#pragma unroll
      for (int n = 0; n < 2; ++n)
        *reinterpret_cast<float2*>(dq + (row * INDEX_HEADS + upper + 8 * half) * DIM + column + 8 * n) =
            make_float2(sums[pair][n][2 * half], sums[pair][n][2 * half + 1]);
    }
  }
  __syncthreads();
  for (int head = threadIdx.x; head < INDEX_HEADS; head += THREADS) {
    float all = 0;
#pragma unroll
    for (int s = 0; s < LOSS_SLICES; ++s) all += weight_sums[s * HEADS + head];
    dw[row * INDEX_HEADS + head] = all;
  }
}
