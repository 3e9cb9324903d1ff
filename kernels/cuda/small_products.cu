// A decode step's products of few rows, each with what stands before and behind it: out = epilogue(prologue(x) weight^T). Contracts and
// references are in src/decode/small_products.rs.
//
// A block has ROWS rows and COLUMNS columns of the result; its warps divide INNER among them and add up their sums at the end, so
// that every number is read once a block, from memory straight into the registers that the products take it from: lane l reads 16
// bytes of row l / 4, the first half of which is its share of one product's k and the second half that of the next. Which k
// they are does not matter as long as x and the weights agree. The weights are on their way before the kernel in front is done.
#include "mma.cuh"
#include "overlap.cuh"

// Numbers that are summed over, a multiple of 32 WARPS.
#ifndef INNER
#define INNER 576
#endif
// Warps of a block.
#ifndef WARPS
#define WARPS 9
#endif
// Rows of a block, a multiple of 16.
#ifndef ROWS
#define ROWS 16
#endif
// Columns of a block, a multiple of 8; of 16 where EPILOGUE is 2.
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

constexpr int THREADS = 32 * WARPS;
constexpr int CHUNK = 32;  // numbers of a row that four lanes read at once
constexpr int OWN_CHUNKS = INNER / CHUNK / WARPS;
static_assert(OWN_CHUNKS * CHUNK * WARPS == INNER, "the warps share INNER evenly");
constexpr int ROW_TILES = ROWS / 16, COLUMN_TILES = COLUMNS / 8;
// Tiles of `out` that a block writes: of a gated product the upper half of the tiles are gates, the lower ups.
constexpr int OUT_TILES = EPILOGUE == 2 ? COLUMN_TILES / 2 : COLUMN_TILES;
// Pairs of neighbours that a block writes, a thread each in turn.
constexpr int PAIRS = ROW_TILES * OUT_TILES * 64;
constexpr int OWN_PAIRS = (PAIRS + THREADS - 1) / THREADS;

// Eight neighbours as the words that products take.
struct Words {
  unsigned at[4];
};

// Of memory that no kernel writes while this one runs.
__device__ __forceinline__ Words load_constant(const bf16* from) {
  Words w;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3])
               : "l"(from));
  return w;
}

__device__ __forceinline__ Words load_words(const bf16* from) {
  Words w;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3])
               : "l"(from)
               : "memory");
  return w;
}

// x [rows, INNER], weight [columns of the product, INNER], out [rows, out_columns]. Grid: columns x rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    small_product(const bf16* x, const bf16* weight, const bf16* norm, float eps, int rows, int out_columns, bf16* out) {
  extern __shared__ float2 parts[];  // [warp, row tile, column tile, upper or lower eight rows, lane]
  __shared__ float squares[NORMED ? WARPS : 1][ROWS];
  start_next_kernel();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_column = blockIdx.x * OUT_TILES * 8, first_row = blockIdx.y * ROWS;
  const int k = warp * OWN_CHUNKS * CHUNK + (lane & 3) * 8;

  Words of_weight[COLUMN_TILES][OWN_CHUNKS] = {}, factor[OWN_CHUNKS] = {};
#pragma unroll
  for (int tile = 0; tile < COLUMN_TILES; ++tile) {
    const int column = first_column + tile % OUT_TILES * 8 + lane / 4;
    const bf16* from = weight + ((long long)(tile / OUT_TILES) * out_columns + column) * INNER + k;
    if (column < out_columns) {
#pragma unroll
      for (int chunk = 0; chunk < OWN_CHUNKS; ++chunk) of_weight[tile][chunk] = load_constant(from + chunk * CHUNK);
    }
  }
  if (NORMED) {
#pragma unroll
    for (int chunk = 0; chunk < OWN_CHUNKS; ++chunk) factor[chunk] = load_constant(norm + k + chunk * CHUNK);
  }

  wait_for_kernels_before();
  Words of_x[ROW_TILES][2][OWN_CHUNKS] = {};
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + tile * 16 + half * 8 + lane / 4;
      if (row < rows) {
#pragma unroll
        for (int chunk = 0; chunk < OWN_CHUNKS; ++chunk)
          of_x[tile][half][chunk] = load_words(x + (long long)row * INNER + k + chunk * CHUNK);
      }
    }
  // What this thread writes in the end, and what is there now.
  const auto place = [&](int i, bool* is_there) {
    const int pair = threadIdx.x + i * THREADS, tile = pair / 64;
    const int row = first_row + tile / OUT_TILES * 16 + pair % 64 / 4;
    const int column = first_column + tile % OUT_TILES * 8 + pair % 4 * 2;
    *is_there = pair < PAIRS && row < rows && column < out_columns;
    return reinterpret_cast<unsigned*>(out + (long long)row * out_columns + column);
  };
  unsigned before[OWN_PAIRS] = {};
  if (EPILOGUE == 1) {
#pragma unroll
    for (int i = 0; i < OWN_PAIRS; ++i) {
      bool is_there;
      const unsigned* from = place(i, &is_there);
      if (is_there) before[i] = *from;
    }
  }

  if (NORMED) {
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = 0;
#pragma unroll
        for (int chunk = 0; chunk < OWN_CHUNKS; ++chunk)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const unsigned pair = of_x[tile][half][chunk].at[i];
            sum += lower_of(pair) * lower_of(pair) + upper_of(pair) * upper_of(pair);
          }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if ((lane & 3) == 0) squares[warp][tile * 16 + half * 8 + lane / 4] = sum;
      }
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sum += squares[w][tile * 16 + half * 8 + lane / 4];
        const float scale = 1.0f / sqrtf(sum / INNER + eps);
#pragma unroll
        for (int chunk = 0; chunk < OWN_CHUNKS; ++chunk)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            unsigned& pair = of_x[tile][half][chunk].at[i];
            const unsigned by = factor[chunk].at[i];
            pair = to_bf16_pair(rounded(lower_of(pair) * scale) * lower_of(by), rounded(upper_of(pair) * scale) * upper_of(by));
          }
      }
  }

  float sums[ROW_TILES][COLUMN_TILES][4] = {};
#pragma unroll
  for (int chunk = 0; chunk < OWN_CHUNKS; ++chunk)
#pragma unroll
    for (int step = 0; step < 4; step += 2)
#pragma unroll
      for (int row = 0; row < ROW_TILES; ++row) {
        const Words &above = of_x[row][0][chunk], &below = of_x[row][1][chunk];
        const unsigned a[4] = {above.at[step], below.at[step], above.at[step + 1], below.at[step + 1]};
#pragma unroll
        for (int column = 0; column < COLUMN_TILES; ++column) {
          const Words& b = of_weight[column][chunk];
          multiply(sums[row][column], a, b.at[step], b.at[step + 1]);
        }
      }
#pragma unroll
  for (int row = 0; row < ROW_TILES; ++row)
#pragma unroll
    for (int column = 0; column < COLUMN_TILES; ++column)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        parts[((warp * ROW_TILES + row) * COLUMN_TILES + column) * 64 + half * 32 + lane] =
            make_float2(sums[row][column][2 * half], sums[row][column][2 * half + 1]);
  __syncthreads();

#pragma unroll
  for (int i = 0; i < OWN_PAIRS; ++i) {
    bool is_there;
    unsigned* to = place(i, &is_there);
    if (!is_there) continue;
    const int pair = threadIdx.x + i * THREADS, tile = pair / 64;
    const auto product = [&](int column) {
      float2 sum = make_float2(0, 0);
#pragma unroll
      for (int w = 0; w < WARPS; ++w) {
        const float2 part = parts[((w * ROW_TILES + tile / OUT_TILES) * COLUMN_TILES + column) * 64 + pair % 64];
        sum.x += part.x, sum.y += part.y;
      }
      return make_float2(rounded(sum.x), rounded(sum.y));
    };
    float2 result = product(tile % OUT_TILES);
    if (EPILOGUE == 1) result.x += lower_of(before[i]), result.y += upper_of(before[i]);
    if (EPILOGUE == 2) {
      const float2 up = product(OUT_TILES + tile % OUT_TILES);
      result.x = rounded(result.x / (1.0f + expf(-result.x))) * up.x;
      result.y = rounded(result.y / (1.0f + expf(-result.y))) * up.y;
    }
    *to = to_bf16_pair(result.x, result.y);
  }
}
