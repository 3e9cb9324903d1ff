// One token a row of logits. The contract and the reference are in src/decode/sampling.rs.
#include "bf16.cuh"
#include "overlap.cuh"

constexpr int THREADS = 1024, WARPS = THREADS / 32;
constexpr int TILE = 32 * 8;  // ids that a warp reads at once

__device__ __forceinline__ bool is_allowed(const unsigned* allowed, int id) {
  return !allowed || (allowed[id / 32] >> (id % 32) & 1);
}

// A division costs as much as all else; mostly it would change nothing.
__device__ __forceinline__ float tempered(bf16 logit, float temperature) {
  const float x = to_float(logit);
  return temperature == 1.0f ? x : x / temperature;
}

// Block of THREADS a row; warp w walks the ids w * segment .. (w + 1) * segment, tile by tile.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sample(const bf16* logits, int vocab, const unsigned* allowed, float temperature, const double* draws, int* tokens,
           float* logprobs, float* entropies) {
  __shared__ float highs[WARPS];
  __shared__ double sums[WARPS], weighted[WARPS], surplus[WARPS];
  __shared__ double before;
  __shared__ int chosen_warp, chosen;
  start_next_kernel();
  wait_for_kernels_before();
  const bf16* row = logits + (long long)blockIdx.x * vocab;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = (vocab + TILE - 1) / TILE;
  const int segment = (tiles + WARPS - 1) / WARPS * TILE;
  const int first = warp * segment, last = min(first + segment, vocab);

  float high = -INFINITY;
  for (int id = first + lane * 8; id < last; id += TILE) {
    const Eight eight = load_eight(row + id);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (is_allowed(allowed, id + j)) high = fmaxf(high, tempered(eight.at[j], temperature));
  }
  high = warp_max(high);
  if (lane == 0) highs[warp] = high;
  if (threadIdx.x == 0) chosen_warp = -1, chosen = -1;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < WARPS; ++w) high = fmaxf(high, highs[w]);

  double sum = 0, sum_weighted = 0, sum_surplus = 0;
  for (int id = first + lane * 8; id < last; id += TILE) {
    const Eight eight = load_eight(row + id);
    // Eight are added up in f32, f64 being many times as slow; below in the same order, so that sums agree to the last bit.
    float own = 0, own_weighted = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float x = tempered(eight.at[j], temperature);
      if (is_allowed(allowed, id + j)) {
        const float weight = expf(x - high);
        own += weight;
        // An impossible token (-inf) adds nothing.
        if (weight > 0.0f || !(x < high)) own_weighted += weight * x;
      } else {
        sum_surplus += exp((double)x - high);
      }
    }
    sum += own, sum_weighted += own_weighted;
  }
  sum = warp_sum(sum), sum_weighted = warp_sum(sum_weighted), sum_surplus = warp_sum(sum_surplus);
  if (lane == 0) sums[warp] = sum, weighted[warp] = sum_weighted, surplus[warp] = sum_surplus;
  __syncthreads();

  double total = 0, total_weighted = 0, total_surplus = 0;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) total += sums[w], total_weighted += weighted[w], total_surplus += surplus[w];
  // Strictly below the total, so that rounding can't run past the last token with weight.
  const double target = fmin(draws[blockIdx.x] * total, __longlong_as_double(__double_as_longlong(total) - 1));
  if (threadIdx.x == 0) {
    double cumulative = 0;
    int holder = WARPS - 1;
    for (int w = 0; w < WARPS; ++w) {
      if (cumulative + sums[w] > target) {
        holder = w;
        break;
      }
      cumulative += sums[w];
    }
    chosen_warp = holder;
    before = cumulative;
  }
  __syncthreads();
  if (warp == chosen_warp) {
    double cumulative = before;
    int found = -1, last_possible = -1;
    for (int tile = first; tile < last && found < 0; tile += TILE) {
      const int id = tile + lane * 8;
      float own[8], own_sum = 0;
      int possible = -1;
      if (id < last) {
        const Eight eight = load_eight(row + id);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float weight = is_allowed(allowed, id + j) ? expf(tempered(eight.at[j], temperature) - high) : 0.0f;
          own_sum += weight;
          own[j] = own_sum;
          if (weight > 0.0f) possible = id + j;
        }
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) own[j] = 0;
      }
      double scan = own_sum;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const double other = __shfl_up_sync(~0u, scan, offset);
        if (lane >= offset) scan += other;
      }
      const double start = cumulative + scan - own_sum;
      int hit = -1;
#pragma unroll
      for (int j = 7; j >= 0; --j)
        if (id < last && start + own[j] > target) hit = id + j;
      const unsigned hits = __ballot_sync(~0u, hit >= 0);
      if (hits) found = __shfl_sync(~0u, hit, __ffs(hits) - 1);
      const unsigned possibles = __ballot_sync(~0u, possible >= 0);
      if (possibles) last_possible = __shfl_sync(~0u, possible, 31 - __clz(possibles));
      cumulative += __shfl_sync(~0u, scan, 31);
    }
    if (lane == 0) chosen = found >= 0 ? found : last_possible;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    // Logits that are not finite leave no token; their log-prob is NaN, which the caller looks for.
    const int token = max(chosen, 0);
    const float x = tempered(row[token], temperature);
    tokens[blockIdx.x] = token;
    logprobs[blockIdx.x] = (float)((double)x - high - log(total + total_surplus));
    entropies[blockIdx.x] = (float)(log(total) + high - total_weighted / total);
  }
}

// The order of bf16 numbers as that of whole numbers; both zeros are one.
__device__ __forceinline__ int order_of(bf16 x) {
  if (x == 0x8000) x = 0;
  return x & 0x8000 ? 0xffff - x : x + 0x8000;
}

__device__ __forceinline__ bf16 of_order(int order) { return order < 0x8000 ? 0xffff - order : order - 0x8000; }

// The sums of `value` over the block, the same in all threads; `parts` is free again after the next barrier.
template <typename T, int COUNT>
__device__ __forceinline__ void block_sums(T (&value)[COUNT], T (*parts)[WARPS]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    value[i] = warp_sum(value[i]);
    if (lane == 0) parts[i][warp] = value[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) value[i] = warp_sum(parts[i][lane]);
}

// Calls `use` with the logit of each allowed id that this thread has of first..last.
template <typename Use>
__device__ __forceinline__ void for_each_allowed(const bf16* row, int first, int last, const unsigned* allowed, Use use) {
  for (int id = first + threadIdx.x % 32 * 8; id < last; id += TILE) {
    const Eight eight = load_eight(row + id);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (is_allowed(allowed, id + j)) use(eight.at[j]);
  }
}

// The same of a row that is truncated first: by top-k (0: not), top-p (1: not) and min-p, whose logarithm is given (-inf: not).
// kept [rows, vocab / 32 rounded up]: a bit for each id that was left.
//
// Least of the prefix of most likely ids is the largest logit such that the ids at or above it are enough: found by
// cutting the range of bf16 numbers into four, again and again.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sample_truncated(const bf16* logits, int vocab, const unsigned* allowed, float temperature, int top_k, double top_p,
                     float log_min_p, const double* draws, int* tokens, float* logprobs, float* entropies, unsigned* kept) {
  constexpr int CUTS = 3;
  __shared__ double sums[CUTS][WARPS];
  __shared__ int counts[CUTS][WARPS];
  __shared__ float highs[WARPS];
  __shared__ double own_sums[WARPS];
  __shared__ int own_ties[WARPS];
  __shared__ double before;
  __shared__ int chosen_warp, chosen;
  start_next_kernel();
  wait_for_kernels_before();
  const bf16* row = logits + (long long)blockIdx.x * vocab;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = (vocab + TILE - 1) / TILE;
  const int segment = (tiles + WARPS - 1) / WARPS * TILE;
  const int first = warp * segment, last = min(first + segment, vocab);

  float high = -INFINITY;
  for_each_allowed(row, first, last, allowed, [&](bf16 logit) { high = fmaxf(high, tempered(logit, temperature)); });
  high = warp_max(high);
  if (lane == 0) highs[warp] = high;
  if (threadIdx.x == 0) chosen_warp = -1, chosen = -1;
  __syncthreads();
  high = warp_max(highs[lane]);

  float own_all = 0, own_weighted = 0;
  for_each_allowed(row, first, last, allowed, [&](bf16 logit) {
    const float x = tempered(logit, temperature), weight = expf(x - high);
    own_all += weight;
    if (weight > 0.0f || !(x < high)) own_weighted += weight * x;
  });
  double all[2] = {own_all, own_weighted};
  block_sums(all, sums);
  const double total = all[0], total_weighted = all[1];
  const double wanted = top_p * total;

  // Ids at or above `low` are enough, those at or above `end` are not.
  int low = 0, end = 0x10000;
  if (top_k == 0 && top_p >= 1.0) end = 1;
  while (end - low > 1) {
    const int step = (end - low + CUTS) / (CUTS + 1);
    float weights[CUTS] = {};
    int above[CUTS] = {};
    for_each_allowed(row, first, last, allowed, [&](bf16 logit) {
      const int order = order_of(logit);
      if (order < low + step) return;
      const float weight = expf(tempered(logit, temperature) - high);
#pragma unroll
      for (int cut = 0; cut < CUTS; ++cut)
        if (order >= low + (cut + 1) * step) weights[cut] += weight, above[cut] += 1;
    });
    double wide[CUTS];
#pragma unroll
    for (int cut = 0; cut < CUTS; ++cut) wide[cut] = weights[cut];
    block_sums(wide, sums);
    block_sums(above, counts);
    const int start = low;
#pragma unroll
    for (int cut = 0; cut < CUTS; ++cut) {
      const int at = start + (cut + 1) * step;
      if (at >= end) continue;
      const bool is_enough = (top_k > 0 && above[cut] >= top_k) || (top_p < 1.0 && wide[cut] >= wanted);
      if (is_enough) low = at;
      if (!is_enough) {
        end = at;
        break;
      }
    }
  }

  // Ids above the least logit stay, and as many of those that have it, by ascending id, as are still wanted.
  const float least_allowed = high + log_min_p;
  double above_sum[1] = {0};
  int tallies[2] = {0, 0};
  for_each_allowed(row, first, last, allowed, [&](bf16 logit) {
    const int order = order_of(logit);
    const float x = tempered(logit, temperature);
    if (order == low) tallies[1] += 1;
    if (order > low) {
      tallies[0] += 1;
      if (x >= least_allowed) above_sum[0] += expf(x - high);
    }
  });
  const double warps_above = warp_sum(above_sum[0]);
  const int warps_ties = warp_sum(tallies[1]);
  block_sums(above_sum, sums);
  block_sums(tallies, counts);
  const float tie = low == 0 ? -INFINITY : tempered(of_order(low), temperature);
  const float tie_weight = low == 0 ? 0.0f : expf(tie - high);
  int ties = tallies[1];
  if (top_k > 0) ties = min(ties, top_k - tallies[0]);
  if (top_p < 1.0 && tie_weight > 0.0f) {
    const double missing = ceil((wanted - above_sum[0]) / tie_weight);
    if (missing < ties) ties = max((int)missing, 1);
  }
  if (tie < least_allowed) ties = 0;
  if (lane == 0) own_ties[warp] = warps_ties;
  __syncthreads();
  int ties_before = 0;
  for (int w = 0; w < warp; ++w) ties_before += own_ties[w];
  const int stay = max(min(ties - ties_before, warps_ties), 0);
  if (lane == 0) own_sums[warp] = warps_above + (double)stay * tie_weight;
  __syncthreads();
  double kept_sum = 0;
  for (int w = 0; w < WARPS; ++w) kept_sum += own_sums[w];
  // Strictly below the sum, so that rounding can't run past the last token with weight.
  const double target = fmin(draws[blockIdx.x] * kept_sum, __longlong_as_double(__double_as_longlong(kept_sum) - 1));
  if (threadIdx.x == 0) {
    double cumulative = 0;
    int holder = -1, last_holder = 0;
    for (int w = 0; w < WARPS; ++w) {
      if (own_sums[w] > 0) last_holder = w, before = cumulative;
      if (cumulative + own_sums[w] > target) {
        holder = w;
        break;
      }
      cumulative += own_sums[w];
    }
    chosen_warp = holder >= 0 ? holder : last_holder;
  }
  __syncthreads();

  const int words = (vocab + 31) / 32;
  double cumulative = warp == chosen_warp ? before : 0;
  int found = -1, last_possible = -1, ties_seen = 0;
  for (int tile = first; tile < last; tile += TILE) {
    const int id = tile + lane * 8;
    Eight eight = {};
    if (id < last) eight = load_eight(row + id);
    unsigned is_above = 0, is_tie = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const bool is_there = id < last && is_allowed(allowed, id + j);
      const int order = order_of(eight.at[j]);
      if (is_there && order > low && tempered(eight.at[j], temperature) >= least_allowed) is_above |= 1u << j;
      if (is_there && order == low) is_tie |= 1u << j;
    }
    int tie_scan = __popc(is_tie);
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(~0u, tie_scan, offset);
      if (lane >= offset) tie_scan += other;
    }
    int rank = ties_seen + tie_scan - __popc(is_tie);
    ties_seen += __shfl_sync(~0u, tie_scan, 31);
    unsigned stays = is_above;
    double own[8], own_sum = 0;
    int possible = -1;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (is_tie >> j & 1 && rank++ < stay) stays |= 1u << j;
      const float weight = stays >> j & 1 ? expf(tempered(eight.at[j], temperature) - high) : 0.0f;
      own_sum += weight;
      own[j] = own_sum;
      if (weight > 0.0f) possible = id + j;
    }
    unsigned word = stays << (lane & 3) * 8;
    word |= __shfl_xor_sync(~0u, word, 1);
    word |= __shfl_xor_sync(~0u, word, 2);
    if ((lane & 3) == 0 && id < vocab) kept[(long long)blockIdx.x * words + id / 32] = word;
    if (warp != chosen_warp || found >= 0) continue;
    double scan = own_sum;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const double other = __shfl_up_sync(~0u, scan, offset);
      if (lane >= offset) scan += other;
    }
    const double start = cumulative + scan - own_sum;
    int hit = -1;
#pragma unroll
    for (int j = 7; j >= 0; --j)
      if (start + own[j] > target && (stays >> j & 1)) hit = id + j;
    const unsigned hits = __ballot_sync(~0u, hit >= 0);
    if (hits) found = __shfl_sync(~0u, hit, __ffs(hits) - 1);
    const unsigned possibles = __ballot_sync(~0u, possible >= 0);
    if (possibles) last_possible = __shfl_sync(~0u, possible, 31 - __clz(possibles));
    cumulative += __shfl_sync(~0u, scan, 31);
  }
  if (warp == chosen_warp && lane == 0) chosen = found >= 0 ? found : last_possible;
  __syncthreads();
  if (threadIdx.x == 0) {
    // Logits that are not finite leave no token, or a total that is no number; their log-prob is NaN, which the caller looks for.
    const int token = max(chosen, 0);
    const double x = tempered(row[token], temperature);
    tokens[blockIdx.x] = token;
    logprobs[blockIdx.x] = chosen < 0 ? NOT_A_NUMBER : (float)(x - high - log(kept_sum) + 0.0 * total);
    entropies[blockIdx.x] = (float)(log(total) + high - total_weighted / total);
  }
}
