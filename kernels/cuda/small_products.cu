// A decode step's products of few rows, each with what stands before and behind it: out = epilogue(prologue(x) weight^T). Contracts and
// references are in src/decode/small_products.rs. A block has some rows and COLUMNS columns of the result and all of INNER in shared
// memory; its warps divide INNER among them, and their sums are added at the end: such products take less than a launch does.
#include "mma.cuh"

// Numbers that are summed over, a multiple of 64.
#ifndef INNER
#define INNER 576
#endif
// Rows of a block: 16, 32 or 64.
#ifndef ROWS
#define ROWS 64
#endif
// Columns of a block: 16 or 32.
#ifndef COLUMNS
#define COLUMNS 16
#endif
// Whether x is normalised: round(x rsqrt(mean(x^2) + eps)) norm.
#ifndef NORMED
#define NORMED 0
#endif
// What happens to the result: 0 nothing, 1 it is added to `out`, 2 weights are gates, then ups: silu(gate) up.
#ifndef EPILOGUE
#define EPILOGUE 0
#endif

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int ROW_GROUPS = ROWS / 16;
constexpr int PAIRS = COLUMNS / 16;
// Columns of `out` that a block writes.
constexpr int OUT_COLUMNS = EPILOGUE == 2 ? COLUMNS / 2 : COLUMNS;

// Normalises the rows of `tile` in place, eight lanes for each.
__device__ __forceinline__ void normalise(bf16* tile, const bf16* norm, float eps) {
  constexpr int CHUNKS = INNER / 64;
  const int lane = threadIdx.x % 8;
  for (int row = threadIdx.x / 8; row < ROWS; row += THREADS / 8) {
    float squares = 0;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const Eight own = load_eight(tile + swizzled(row, chunk * 64 + lane * 8, INNER));
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += to_float(own.at[i]) * to_float(own.at[i]);
    }
#pragma unroll
    for (int other = 1; other < 8; other *= 2) squares += __shfl_xor_sync(~0u, squares, other);
    const float scale = 1.0f / sqrtf(squares / INNER + eps);
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const int column = chunk * 64 + lane * 8;
      Eight own = load_eight(tile + swizzled(row, column, INNER));
      const Eight factor = load_eight(norm + column);
#pragma unroll
      for (int i = 0; i < 8; ++i) own.at[i] = to_bf16(rounded(to_float(own.at[i]) * scale) * to_float(factor.at[i]));
      store_eight(tile + swizzled(row, column, INNER), own);
    }
  }
}

// x [rows, INNER], weight [columns of the product, INNER], out [rows, out_columns]. Grid: columns x rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    small_product(const bf16* x, const bf16* weight, const bf16* norm, float eps, int rows, int out_columns, bf16* out) {
  extern __shared__ __align__(128) bf16 shared[];
  bf16* own_x = shared;
  bf16* own_weight = own_x + ROWS * INNER;
  const int first_column = blockIdx.x * OUT_COLUMNS, first_row = blockIdx.y * ROWS;
  constexpr int CHUNKS = INNER / 8;
  for (int at = threadIdx.x; at < ROWS * CHUNKS; at += THREADS) {
    const int row = at / CHUNKS, column = at % CHUNKS * 8;
    const bool is_there = first_row + row < rows;
    copy_async(own_x + swizzled(row, column, INNER), x + (is_there ? (long long)(first_row + row) * INNER + column : 0), is_there);
  }
  for (int at = threadIdx.x; at < COLUMNS * CHUNKS; at += THREADS) {
    const int row = at / CHUNKS, column = at % CHUNKS * 8;
    // Of a gated product the upper half of the columns are gates, the lower ups.
    const bool is_up = EPILOGUE == 2 && row >= OUT_COLUMNS;
    const int own = first_column + (is_up ? row - OUT_COLUMNS : row);
    const bool is_there = own < out_columns;
    const long long from = own + (is_up ? (long long)out_columns : 0);
    copy_async(own_weight + swizzled(row, column, INNER), weight + (is_there ? from * INNER + column : 0), is_there);
  }
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  if (NORMED) {
    normalise(own_x, norm, eps);
    __syncthreads();
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sums[ROW_GROUPS][2 * PAIRS][4] = {};
#pragma unroll 4
  for (int k = warp * 16; k < INNER; k += WARPS * 16) {
    unsigned of_weight[PAIRS][4];
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) load_b(of_weight[pair], own_weight, INNER, pair * 16, k);
#pragma unroll
    for (int group = 0; group < ROW_GROUPS; ++group) {
      unsigned of_x[4];
      load_a(of_x, own_x, INNER, group * 16, k);
#pragma unroll
      for (int pair = 0; pair < PAIRS; ++pair) {
        multiply(sums[group][2 * pair], of_x, of_weight[pair][0], of_weight[pair][1]);
        multiply(sums[group][2 * pair + 1], of_x, of_weight[pair][2], of_weight[pair][3]);
      }
    }
  }
  __syncthreads();
  // [warp, row, column], where x was.
  float* parts = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int group = 0; group < ROW_GROUPS; ++group)
#pragma unroll
    for (int n = 0; n < 2 * PAIRS; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = group * 16 + lane / 4 + 8 * half, column = n * 8 + (lane & 3) * 2;
        *reinterpret_cast<float2*>(parts + (warp * ROWS + row) * COLUMNS + column) =
            make_float2(sums[group][n][2 * half], sums[group][n][2 * half + 1]);
      }
  __syncthreads();
  const auto product = [&](int row, int column) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += parts[(w * ROWS + row) * COLUMNS + column];
    return rounded(sum);
  };
  for (int at = threadIdx.x; at < ROWS * OUT_COLUMNS; at += THREADS) {
    const int row = at / OUT_COLUMNS, column = at % OUT_COLUMNS;
    if (first_row + row >= rows || first_column + column >= out_columns) continue;
    bf16* to = out + (long long)(first_row + row) * out_columns + first_column + column;
    float result = product(row, column);
    if (EPILOGUE == 1) result += to_float(*to);
    if (EPILOGUE == 2) result = rounded(result / (1.0f + expf(-result))) * product(row, OUT_COLUMNS + column);
    *to = to_bf16(result);
  }
}
