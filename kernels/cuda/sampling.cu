// One token a row of logits. The contract and the reference are in src/decode/sampling.rs.
#include "bf16.cuh"

constexpr int THREADS = 1024, WARPS = THREADS / 32;
constexpr int TILE = 32 * 8;  // ids that a warp reads at once

__device__ __forceinline__ bool is_allowed(const unsigned* allowed, int id) {
  return !allowed || (allowed[id / 32] >> (id % 32) & 1);
}

// Block of THREADS a row; warp w walks the ids w * segment .. (w + 1) * segment, tile by tile.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample(const bf16* logits, int vocab, const unsigned* allowed, float temperature, const double* draws, int* tokens,
           float* logprobs, float* entropies) {
  __shared__ float highs[WARPS];
  __shared__ double sums[WARPS], weighted[WARPS], surplus[WARPS];
  __shared__ double before;
  __shared__ int chosen_warp, chosen;
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
      if (is_allowed(allowed, id + j)) high = fmaxf(high, to_float(eight.at[j]) / temperature);
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
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float x = to_float(eight.at[j]) / temperature;
      if (is_allowed(allowed, id + j)) {
        const float weight = expf(x - high);
        sum += weight;
        // An impossible token (-inf) adds nothing.
        if (weight > 0.0f || !(x < high)) sum_weighted += (double)weight * x;
      } else {
        sum_surplus += exp((double)x - high);
      }
    }
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
      double own[8], own_sum = 0;
      int possible = -1;
      if (id < last) {
        const Eight eight = load_eight(row + id);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float weight = is_allowed(allowed, id + j) ? expf(to_float(eight.at[j]) / temperature - high) : 0.0f;
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
    const float x = to_float(row[token]) / temperature;
    tokens[blockIdx.x] = token;
    logprobs[blockIdx.x] = (float)((double)x - high - log(total + total_surplus));
    entropies[blockIdx.x] = (float)(log(total) + high - total_weighted / total);
  }
}
