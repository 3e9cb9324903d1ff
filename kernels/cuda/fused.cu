// Forward and backward passes of a learner's row operations. Contracts and references are in src/fused/. Widths are
// multiples of 8; roundings of forward passes are those of the eager operations in bf16.
#include "bf16.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;
// Eights of a row that a lane holds: EIGHTS * 256 is at least the width of a norm.
#ifndef EIGHTS
#define EIGHTS 1
#endif
// Width of an attention head, a multiple of 16.
#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif

// out_x = x + y where there is y (else x is out_x); h = rms_norm(out_x) * weight; scales[row] = rsqrt(mean square).
// A warp for each row.
extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(const bf16* x, const bf16* y, const bf16* weight, float eps, int width, int rows, bf16* out_x, bf16* h,
             float* scales) {
  const int lane = threadIdx.x % 32;
  const int row = blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  const long long start = (long long)row * width;
  Eight own[EIGHTS];
  float squares = 0;
#pragma unroll
  for (int e = 0; e < EIGHTS; ++e) {
    const int column = (e * 32 + lane) * 8;
    if (column >= width) continue;
    own[e] = load_eight(x + start + column);
    if (y) {
      const Eight other = load_eight(y + start + column);
#pragma unroll
      for (int j = 0; j < 8; ++j) own[e].at[j] = to_bf16(to_float(own[e].at[j]) + to_float(other.at[j]));
      store_eight(out_x + start + column, own[e]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += to_float(own[e].at[j]) * to_float(own[e].at[j]);
  }
  const float scale = 1.0f / sqrtf(warp_sum(squares) / width + eps);
  if (lane == 0) scales[row] = scale;
#pragma unroll
  for (int e = 0; e < EIGHTS; ++e) {
    const int column = (e * 32 + lane) * 8;
    if (column >= width) continue;
    const Eight factor = load_eight(weight + column);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      own[e].at[j] = to_bf16(rounded(to_float(own[e].at[j]) * scale) * to_float(factor.at[j]));
    store_eight(h + start + column, own[e]);
  }
}

// With n = x scale, g = grad_h weight: grad_x = scale (g - n mean(g n)) + grad_sum where there is one;
// weight_parts[warp] = sum of grad_h n over the warp's rows, f32 [all warps, width].
extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_backward(const bf16* grad_h, const bf16* grad_sum, const bf16* x, const bf16* weight, const float* scales,
                      int width, int rows, bf16* grad_x, float* weight_parts) {
  const int lane = threadIdx.x % 32;
  const int warp = blockIdx.x * WARPS + threadIdx.x / 32;
  float sums[EIGHTS][8] = {};
  Eight factor[EIGHTS] = {};
#pragma unroll
  for (int e = 0; e < EIGHTS; ++e) {
    const int column = (e * 32 + lane) * 8;
    if (column < width) factor[e] = load_eight(weight + column);
  }
  for (int row = warp; row < rows; row += gridDim.x * WARPS) {
    const long long start = (long long)row * width;
    const float scale = scales[row];
    Eight values[EIGHTS], grads[EIGHTS];
    float product = 0;
#pragma unroll
    for (int e = 0; e < EIGHTS; ++e) {
      const int column = (e * 32 + lane) * 8;
      if (column >= width) continue;
      values[e] = load_eight(x + start + column);
      grads[e] = load_eight(grad_h + start + column);
    }
#pragma unroll
    for (int e = 0; e < EIGHTS; ++e) {
      const int column = (e * 32 + lane) * 8;
      if (column >= width) continue;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float normed = to_float(values[e].at[j]) * scale, grad = to_float(grads[e].at[j]);
        product += grad * to_float(factor[e].at[j]) * normed;
        sums[e][j] += grad * normed;
      }
    }
    const float mean = warp_sum(product) / width;
#pragma unroll
    for (int e = 0; e < EIGHTS; ++e) {
      const int column = (e * 32 + lane) * 8;
      if (column >= width) continue;
      Eight other = {};
      if (grad_sum) other = load_eight(grad_sum + start + column);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float normed = to_float(values[e].at[j]) * scale;
        const float grad = to_float(grads[e].at[j]) * to_float(factor[e].at[j]);
        other.at[j] = to_bf16(scale * (grad - normed * mean) + to_float(other.at[j]));
      }
      store_eight(grad_x + start + column, other);
    }
  }
#pragma unroll
  for (int e = 0; e < EIGHTS; ++e) {
    const int column = (e * 32 + lane) * 8;
    if (column >= width) continue;
    float4* to = reinterpret_cast<float4*>(weight_parts + (long long)warp * width + column);
    to[0] = make_float4(sums[e][0], sums[e][1], sums[e][2], sums[e][3]);
    to[1] = make_float4(sums[e][4], sums[e][5], sums[e][6], sums[e][7]);
  }
}

// out = silu(gate) up, with both [rows, 2 width] beside each other. One thread for 8 numbers.
extern "C" __global__ void __launch_bounds__(256)
    swiglu(const bf16* both, int width, long long num_eights, bf16* out) {
  const long long index = (long long)blockIdx.x * 256 + threadIdx.x;
  if (index >= num_eights) return;
  const int per_row = width / 8;
  const long long row = index / per_row;
  const int column = (int)(index - row * per_row) * 8;
  Eight gate = load_eight(both + row * 2 * width + column);
  const Eight up = load_eight(both + row * 2 * width + width + column);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float x = to_float(gate.at[j]);
    gate.at[j] = to_bf16(rounded(x / (1.0f + __expf(-x))) * to_float(up.at[j]));
  }
  store_eight(out + row * width + column, gate);
}

extern "C" __global__ void __launch_bounds__(256)
    swiglu_backward(const bf16* grad_out, const bf16* both, int width, long long num_eights, bf16* grad_both) {
  const long long index = (long long)blockIdx.x * 256 + threadIdx.x;
  if (index >= num_eights) return;
  const int per_row = width / 8;
  const long long row = index / per_row;
  const int column = (int)(index - row * per_row) * 8;
  const long long at = row * 2 * width + column;
  Eight gate = load_eight(both + at), up = load_eight(both + at + width);
  const Eight grad = load_eight(grad_out + row * width + column);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float x = to_float(gate.at[j]), g = to_float(grad.at[j]);
    const float sigmoid = 1.0f / (1.0f + __expf(-x));
    gate.at[j] = to_bf16(g * to_float(up.at[j]) * sigmoid * (1.0f + x * (1.0f - sigmoid)));
    up.at[j] = to_bf16(g * x * sigmoid);
  }
  store_eight(grad_both + at, gate);
  store_eight(grad_both + at + width, up);
}

// Where a thread's 16 numbers of a row of heads lie: 8 of the first half of a head, and 8 of the second.
constexpr int PARTS = HEAD_DIM / 16;

__device__ __forceinline__ void turn(const bf16* from, const bf16* cos, const bf16* sin, int part, bf16* to) {
  Eight first = load_eight(from + part * 8), second = load_eight(from + HEAD_DIM / 2 + part * 8);
  const Eight cos_first = load_eight(cos + part * 8), cos_second = load_eight(cos + HEAD_DIM / 2 + part * 8);
  const Eight sin_first = load_eight(sin + part * 8), sin_second = load_eight(sin + HEAD_DIM / 2 + part * 8);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float a = to_float(first.at[j]), b = to_float(second.at[j]);
    first.at[j] = to_bf16(rounded(a * to_float(cos_first.at[j])) + rounded(-b * to_float(sin_first.at[j])));
    second.at[j] = to_bf16(rounded(b * to_float(cos_second.at[j])) + rounded(a * to_float(sin_second.at[j])));
  }
  store_eight(to + part * 8, first);
  store_eight(to + HEAD_DIM / 2 + part * 8, second);
}

// q[t, h] = turned(qkv[t, h]); k[r, h] = turned(qkv[rows[r], heads + h]); v[r, h] = qkv[rows[r], heads + kv_heads + h].
// One thread for 16 numbers of q, then of k and v.
extern "C" __global__ void __launch_bounds__(256)
    rope_and_gather(const bf16* qkv, const bf16* cos, const bf16* sin, const int* rows, int heads, int kv_heads,
                    long long num_q, long long num_kv, bf16* q, bf16* k, bf16* v) {
  long long index = (long long)blockIdx.x * 256 + threadIdx.x;
  const int part = (int)(index % PARTS);
  index /= PARTS;
  const long long stride = (long long)(heads + 2 * kv_heads) * HEAD_DIM;
  if (index < num_q) {
    const long long row = index / heads;
    const int head = (int)(index - row * heads);
    turn(qkv + row * stride + head * HEAD_DIM, cos + row * HEAD_DIM, sin + row * HEAD_DIM, part, q + index * HEAD_DIM);
    return;
  }
  index -= num_q;
  if (index >= num_kv) return;
  const long long to = index / kv_heads;
  const int head = (int)(index - to * kv_heads);
  const long long row = rows[to];
  const bf16* from = qkv + row * stride + (heads + head) * HEAD_DIM;
  turn(from, cos + row * HEAD_DIM, sin + row * HEAD_DIM, part, k + index * HEAD_DIM);
  from += kv_heads * HEAD_DIM;
  store_eight(v + index * HEAD_DIM + part * 8, load_eight(from + part * 8));
  store_eight(v + index * HEAD_DIM + HEAD_DIM / 2 + part * 8, load_eight(from + HEAD_DIM / 2 + part * 8));
}

struct Sixteen {
  float first[8], second[8];
};

__device__ __forceinline__ void add(Sixteen& sum, const bf16* from, int part) {
  const Eight first = load_eight(from + part * 8), second = load_eight(from + HEAD_DIM / 2 + part * 8);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    sum.first[j] += to_float(first.at[j]);
    sum.second[j] += to_float(second.at[j]);
  }
}

__device__ __forceinline__ void store(bf16* to, const Sixteen& values, int part) {
  Eight first, second;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    first.at[j] = to_bf16(values.first[j]);
    second.at[j] = to_bf16(values.second[j]);
  }
  store_eight(to + part * 8, first);
  store_eight(to + HEAD_DIM / 2 + part * 8, second);
}

// The inverse: row t was gathered to copies[starts[t]..starts[t + 1]], whose gradients add up in f32.
extern "C" __global__ void __launch_bounds__(256)
    rope_and_gather_backward(const bf16* grad_q, const bf16* grad_k, const bf16* grad_v, const bf16* cos,
                             const bf16* sin, const int* starts, const int* copies, int heads, int kv_heads,
                             long long num_heads, bf16* grad_qkv) {
  long long index = (long long)blockIdx.x * 256 + threadIdx.x;
  const int part = (int)(index % PARTS);
  index /= PARTS;
  if (index >= num_heads) return;
  const int per_row = heads + 2 * kv_heads;
  const long long row = index / per_row;
  const int head = (int)(index - row * per_row);
  Sixteen sum = {};
  if (head < heads) {
    add(sum, grad_q + (row * heads + head) * HEAD_DIM, part);
  } else {
    const bool is_key = head < heads + kv_heads;
    const bf16* grads = is_key ? grad_k : grad_v;
    const int own = head - heads - (is_key ? 0 : kv_heads);
    for (int i = starts[row]; i < starts[row + 1]; ++i)
      add(sum, grads + ((long long)copies[i] * kv_heads + own) * HEAD_DIM, part);
  }
  if (head < heads + kv_heads) {
    const bf16 *c = cos + row * HEAD_DIM, *s = sin + row * HEAD_DIM;
    const Eight cos_first = load_eight(c + part * 8), cos_second = load_eight(c + HEAD_DIM / 2 + part * 8);
    const Eight sin_first = load_eight(s + part * 8), sin_second = load_eight(s + HEAD_DIM / 2 + part * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float a = sum.first[j], b = sum.second[j];
      sum.first[j] = a * to_float(cos_first.at[j]) + b * to_float(sin_second.at[j]);
      sum.second[j] = b * to_float(cos_second.at[j]) - a * to_float(sin_first.at[j]);
    }
  }
  store(grad_qkv + index * HEAD_DIM, sum, part);
}

constexpr int VOCAB_THREADS = 512;
constexpr int VOCAB_WARPS = VOCAB_THREADS / 32;

// With z = logits / temperature: sums[row] = log sum_v exp z_v, logprobs[row] = z_target - sums[row]. Grid: rows. v runs over
// ids[offsets[row]..offsets[row + 1]], or over the whole vocabulary where that is empty or `offsets` is null.
extern "C" __global__ void __launch_bounds__(VOCAB_THREADS)
    token_logprobs(const bf16* logits, const long long* targets, const int* offsets, const int* ids, float temperature,
                   int vocab, float* sums, float* logprobs) {
  __shared__ float highs[VOCAB_WARPS], totals[VOCAB_WARPS];
  const bf16* row = logits + (long long)blockIdx.x * vocab;
  const float inverse = 1.0f / temperature;
  float high = -INFINITY, total = 0;
  const int first = offsets ? offsets[blockIdx.x] : 0, end = offsets ? offsets[blockIdx.x + 1] : 0;
  for (int i = first + threadIdx.x; i < end; i += VOCAB_THREADS) {
    const float z = to_float(row[ids[i]]) * inverse;
    if (z > high) {
      total *= __expf(high - z);
      high = z;
    }
    total += __expf(z - high);
  }
  for (int i = threadIdx.x * 8; i < vocab && first == end; i += VOCAB_THREADS * 8) {
    const Eight eight = load_eight(row + i);
    float largest = to_float(eight.at[0]);
#pragma unroll
    for (int j = 1; j < 8; ++j) largest = fmaxf(largest, to_float(eight.at[j]));
    largest *= inverse;
    if (largest > high) {
      total *= __expf(high - largest);
      high = largest;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) total += __expf(to_float(eight.at[j]) * inverse - high);
  }
  const float warp_high = warp_max(high);
  total = warp_sum(high == -INFINITY ? 0.0f : total * __expf(high - warp_high));
  if (threadIdx.x % 32 == 0) {
    highs[threadIdx.x / 32] = warp_high;
    totals[threadIdx.x / 32] = total;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  high = highs[0];
  for (int i = 1; i < VOCAB_WARPS; ++i) high = fmaxf(high, highs[i]);
  total = 0;
  for (int i = 0; i < VOCAB_WARPS; ++i)
    if (highs[i] != -INFINITY) total += totals[i] * expf(highs[i] - high);
  const float sum = high + logf(total);
  sums[blockIdx.x] = sum;
  logprobs[blockIdx.x] = to_float(row[targets[blockIdx.x]]) * inverse - sum;
}

// logits[row, v] = ([v is the target] - exp(z_v - sums[row])) grads[row] / temperature, in place; 0 for a v that was not
// kept. Grid: rows, parts of a row. The ids of a row are ascending.
extern "C" __global__ void __launch_bounds__(256)
    token_logprobs_backward(bf16* logits, const long long* targets, const int* offsets, const int* ids,
                            const float* sums, const float* grads, float temperature, int vocab) {
  const int column = (blockIdx.y * 256 + threadIdx.x) * 8;
  if (column >= vocab) return;
  const float inverse = 1.0f / temperature, sum = sums[blockIdx.x];
  const float grad = grads[blockIdx.x] * inverse;
  const int target = (int)targets[blockIdx.x] - column;
  // Bit j: column + j was kept.
  unsigned kept = 255;
  const int first = offsets ? offsets[blockIdx.x] : 0, end = offsets ? offsets[blockIdx.x + 1] : 0;
  if (first < end) {
    int low = first, high = end;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (ids[middle] < column)
        low = middle + 1;
      else
        high = middle;
    }
    kept = 0;
    for (; low < end && ids[low] < column + 8; ++low) kept |= 1u << (ids[low] - column);
  }
  bf16* at = logits + (long long)blockIdx.x * vocab + column;
  Eight eight = load_eight(at);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float probability = __expf(to_float(eight.at[j]) * inverse - sum);
    eight.at[j] = to_bf16(kept >> j & 1 ? ((j == target ? 1.0f : 0.0f) - probability) * grad : 0.0f);
  }
  store_eight(at, eight);
}
