// Routing of one token a sequence, and the sum of its experts. Contracts and references are in src/decode/experts.rs.
#include "bf16.cuh"
#include "overlap.cuh"

constexpr int MAX_EXPERTS = 256;

// A warp a token. scores = softmax or sigmoid of x gate^T in f32; the top_k of scores + bias, best first, ties to
// the lower expert; gates [B, num_experts] hold the weights of the chosen ones and 0 elsewhere; ids
// [B, ids_stride] get the chosen ones.
extern "C" __global__ void __launch_bounds__(32)
    route(const bf16* x, const float* gate, const float* bias, int width, int num_experts, int top_k, int is_sigmoid,
          int normalise, float scaling, float* gates, unsigned short* ids, long long ids_stride) {
  __shared__ float scores[MAX_EXPERTS];
  start_next_kernel();
  wait_for_kernels_before();
  const int lane = threadIdx.x;
  const bf16* row = x + (long long)blockIdx.x * width;
  for (int expert = 0; expert < num_experts; ++expert) {
    const float* column = gate + (long long)expert * width;
    float logit = 0;
    for (int i = lane; i < width; i += 32) logit += to_float(row[i]) * column[i];
    logit = warp_sum(logit);
    if (lane == 0) scores[expert] = logit;
  }
  __syncwarp();
  if (is_sigmoid) {
    for (int e = lane; e < num_experts; e += 32) scores[e] = 1.0f / (1.0f + expf(-scores[e]));
  } else {
    float top = -INFINITY, sum = 0;
    for (int e = lane; e < num_experts; e += 32) top = fmaxf(top, scores[e]);
    top = warp_max(top);
    for (int e = lane; e < num_experts; e += 32) sum += expf(scores[e] - top);
    sum = warp_sum(sum);
    for (int e = lane; e < num_experts; e += 32) scores[e] = expf(scores[e] - top) / sum;
  }
  float* own = gates + (long long)blockIdx.x * num_experts;
  for (int e = lane; e < num_experts; e += 32) own[e] = 0.0f;
  __syncwarp();
  float chosen_sum = 0;
  for (int rank = 0; rank < top_k; ++rank) {
    float best = -INFINITY;
    int best_expert = num_experts;
    for (int e = lane; e < num_experts; e += 32) {
      // A chosen one's gate is its score, which may be 0 only by underflow: marked by -1 below.
      if (own[e] != 0.0f) continue;
      const float choice = scores[e] + (bias ? bias[e] : 0.0f);
      if (choice > best || best_expert == num_experts) best = choice, best_expert = e;
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(~0u, best, offset);
      const int other_expert = __shfl_xor_sync(~0u, best_expert, offset);
      if (other_expert < num_experts &&
          (best_expert == num_experts || other > best || (other == best && other_expert < best_expert))) {
        best = other;
        best_expert = other_expert;
      }
    }
    if (lane == 0) {
      own[best_expert] = scores[best_expert] == 0.0f ? -1.0f : scores[best_expert];
      ids[blockIdx.x * ids_stride + rank] = (unsigned short)best_expert;
    }
    chosen_sum += scores[best_expert];
    __syncwarp();
  }
  const float factor = scaling / (normalise ? chosen_sum + 1e-20f : 1.0f);
  for (int e = lane; e < num_experts; e += 32) own[e] = own[e] < 0.0f ? 0.0f : own[e] * factor;
}

// y[b] = sum of gates[b, e] outputs[e, b] over the experts, in their order, in f32. Grid: rows.
extern "C" __global__ void __launch_bounds__(128)
    combine_experts(const bf16* outputs, const float* gates, int num_experts, int width, bf16* y) {
  start_next_kernel();
  wait_for_kernels_before();
  const int rows = gridDim.x, row = blockIdx.x;
  const float* own = gates + (long long)row * num_experts;
  for (int i = threadIdx.x * 8; i < width; i += 128 * 8) {
    float sum[8] = {};
    for (int e = 0; e < num_experts; ++e) {
      const float gate = own[e];
      if (gate == 0.0f) continue;
      const Eight part = load_eight(outputs + ((long long)e * rows + row) * width + i);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += to_float(part.at[j]) * gate;
    }
    Eight all;
#pragma unroll
    for (int j = 0; j < 8; ++j) all.at[j] = to_bf16(sum[j]);
    store_eight(y + (long long)row * width + i, all);
  }
}
