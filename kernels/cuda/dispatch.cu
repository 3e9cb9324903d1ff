// A learner's rows on their way to experts and back. T tokens go to K experts each; the N = T K assignments are sorted by
// expert. order[r] = t K + j is the assignment at sorted row r, places[t K + j] = r its inverse. W is a row's width, a
// multiple of 8. Sums run in f32, in the order of a token's assignments, and are rounded once.
#include "bf16.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// out[r] = x[order[r] / K]. One thread for 8 numbers.
extern "C" __global__ void __launch_bounds__(THREADS)
    gather_rows(const bf16* x, const int* order, int top_k, int width, long long num_eights, bf16* out) {
  const long long index = (long long)blockIdx.x * THREADS + threadIdx.x;
  if (index >= num_eights) return;
  const int per_row = width / 8;
  const long long row = index / per_row;
  const int column = (int)(index - row * per_row) * 8;
  store_eight(out + row * width + column, load_eight(x + (long long)(order[row] / top_k) * width + column));
}

// out[t] = sum_j weights[t K + j] rows[places[t K + j]]; without weights (null) they are 1. One thread for 8 numbers.
extern "C" __global__ void __launch_bounds__(THREADS)
    sum_rows(const bf16* rows, const float* weights, const int* places, int top_k, int width, long long num_eights,
             bf16* out) {
  const long long index = (long long)blockIdx.x * THREADS + threadIdx.x;
  if (index >= num_eights) return;
  const int per_row = width / 8;
  const long long token = index / per_row;
  const int column = (int)(index - token * per_row) * 8;
  float sums[8] = {};
  for (int j = 0; j < top_k; ++j) {
    const long long assignment = token * top_k + j;
    const Eight eight = load_eight(rows + (long long)places[assignment] * width + column);
    const float weight = weights ? weights[assignment] : 1.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] += weight * to_float(eight.at[i]);
  }
  Eight result;
#pragma unroll
  for (int i = 0; i < 8; ++i) result.at[i] = to_bf16(sums[i]);
  store_eight(out + token * width + column, result);
}

// Of sum_rows with weights, t = order[r] / K: grad_rows[r] = weights[order[r]] grad_out[t],
// grad_weights[order[r]] = sum_w rows[r, w] grad_out[t, w]. One warp for a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    sum_rows_backward(const bf16* grad_out, const bf16* rows, const float* weights, const int* order, int top_k,
                      int width, int num_rows, bf16* grad_rows, float* grad_weights) {
  const int lane = threadIdx.x % 32;
  const int row = blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= num_rows) return;
  const int assignment = order[row];
  const float weight = weights[assignment];
  const bf16* grad = grad_out + (long long)(assignment / top_k) * width;
  const long long start = (long long)row * width;
  float product = 0;
  for (int column = lane * 8; column < width; column += 32 * 8) {
    Eight own = load_eight(rows + start + column);
    const Eight incoming = load_eight(grad + column);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float g = to_float(incoming.at[i]);
      product += g * to_float(own.at[i]);
      own.at[i] = to_bf16(weight * g);
    }
    store_eight(grad_rows + start + column, own);
  }
  product = warp_sum(product);
  if (lane == 0) grad_weights[assignment] = product;
}

constexpr int MOST_CHOSEN = 16;

// The best expert of a row that is not among `chosen[0..count]`: highest score + bias, the lower one of equals.
__device__ __forceinline__ int best_expert(const float* scores, const float* bias, int experts, const int* chosen,
                                           int count, int lane) {
  float best = -INFINITY;
  int index = experts;
  for (int e = lane; e < experts; e += 32) {
    bool is_taken = false;
#pragma unroll
    for (int j = 0; j < MOST_CHOSEN; ++j) is_taken |= j < count && chosen[j] == e;
    const float value = scores[e] + (bias ? bias[e] : 0.0f);
    if (!is_taken && (value > best || (index == experts && value == best))) {
      best = value;
      index = e;
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(~0u, best, offset);
    const int other_index = __shfl_xor_sync(~0u, index, offset);
    if (other > best || (other == best && other_index < index)) {
      best = other;
      index = other_index;
    }
  }
  // Only where scores are not numbers.
  return index < experts ? index : count;
}

// scores = softmax or sigmoid of logits [T, E]; S = `recorded` [T, K] where given, else the K best of scores + bias;
// gates = scaling scores[S], divided by their sum where `normalise`; agreeing[t] = how many of the K best are in S.
// One warp for a token.
extern "C" __global__ void __launch_bounds__(THREADS)
    route(const float* logits, const float* bias, const long long* recorded, int tokens, int experts, int top_k,
          int is_sigmoid, int normalise, float scaling, float* scores, long long* chosen_ids, float* gates,
          int* agreeing) {
  const int lane = threadIdx.x % 32;
  const int token = blockIdx.x * WARPS + threadIdx.x / 32;
  if (token >= tokens) return;
  const float* z = logits + (long long)token * experts;
  float* s = scores + (long long)token * experts;
  if (is_sigmoid) {
    for (int e = lane; e < experts; e += 32) s[e] = 1.0f / (1.0f + expf(-z[e]));
  } else {
    float high = -INFINITY, total = 0;
    for (int e = lane; e < experts; e += 32) high = fmaxf(high, z[e]);
    high = warp_max(high);
    for (int e = lane; e < experts; e += 32) total += expf(z[e] - high);
    total = warp_sum(total);
    for (int e = lane; e < experts; e += 32) s[e] = expf(z[e] - high) / total;
  }
  __syncwarp();
  int best[MOST_CHOSEN];
#pragma unroll
  for (int j = 0; j < MOST_CHOSEN; ++j)
    if (j < top_k) best[j] = best_expert(s, bias, experts, best, j, lane);
  const long long start = (long long)token * top_k;
  int own[MOST_CHOSEN];
  float sum = 0;
  int num_same = 0;
#pragma unroll
  for (int j = 0; j < MOST_CHOSEN; ++j) {
    if (j >= top_k) continue;
    own[j] = recorded ? (int)recorded[start + j] : best[j];
    sum += s[own[j]];
#pragma unroll
    for (int i = 0; i < MOST_CHOSEN; ++i) num_same += i < top_k && best[i] == own[j];
  }
  const float factor = normalise ? scaling / (sum + 1e-20f) : scaling;
#pragma unroll
  for (int j = 0; j < MOST_CHOSEN; ++j) {
    if (j >= top_k || lane != j) continue;
    chosen_ids[start + j] = own[j];
    gates[start + j] = s[own[j]] * factor;
  }
  if (lane == 0) agreeing[token] = num_same;
}

// With c = scores[S], C = sum c + 1e-20: dc = scaling (dgates - sum(dgates c) / C) / C where normalised, else scaling dgates;
// softmax: dz = s (ds - sum(ds s)), sigmoid: dz = ds s (1 - s), where ds is dc at S and 0 elsewhere. One warp for a token.
extern "C" __global__ void __launch_bounds__(THREADS)
    route_backward(const float* grad_gates, const float* scores, const long long* chosen_ids, int tokens, int experts,
                   int top_k, int is_sigmoid, int normalise, float scaling, float* grad_logits) {
  const int lane = threadIdx.x % 32;
  const int token = blockIdx.x * WARPS + threadIdx.x / 32;
  if (token >= tokens) return;
  const float* s = scores + (long long)token * experts;
  float* dz = grad_logits + (long long)token * experts;
  const long long start = (long long)token * top_k;
  const bool is_chosen = lane < top_k;
  const int own = is_chosen ? (int)chosen_ids[start + lane] : 0;
  const float grad = is_chosen ? grad_gates[start + lane] : 0.0f, score = is_chosen ? s[own] : 0.0f;
  float of_score = scaling * grad;
  if (normalise) {
    const float sum = warp_sum(score) + 1e-20f;
    of_score = scaling * (grad - warp_sum(grad * score) / sum) / sum;
  }
  const float mean = is_sigmoid ? 0.0f : warp_sum(is_chosen ? of_score * score : 0.0f);
  for (int e = lane; e < experts; e += 32) dz[e] = is_sigmoid ? 0.0f : -s[e] * mean;
  __syncwarp();
  if (is_chosen) dz[own] = is_sigmoid ? of_score * score * (1.0f - score) : score * (of_score - mean);
}
