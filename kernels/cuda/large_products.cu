// A decode step's products of many rows, each with what stands before and behind it, as those of few rows in small_products.cu:
// out = epilogue(prologue(x) weight^T). Contracts and references are in src/decode/products.rs.
//
// A block has ROWS rows and COLUMNS columns of the result, and eight warps a part of them each; what they multiply passes through
// shared memory in pieces of 64 numbers, some of which are on their way while one is computed. Rows to be normalised lie there
// whole. The first weights are on their way before the kernel in front is done.
#include "mma.cuh"
#include "overlap.cuh"

// Numbers that are summed over, a multiple of 64.
#ifndef INNER
#define INNER 576
#endif
// Rows of a block: 16 WARP_ROWS times any number.
#ifndef ROWS
#define ROWS 64
#endif
// Columns of a block: 16 WARP_COLUMNS times any number.
#ifndef COLUMNS
#define COLUMNS 64
#endif
// Whether x is normalised: round(x rsqrt(mean(x^2) + eps)) norm.
#ifndef NORMED
#define NORMED 0
#endif
// What happens to the result: 0 nothing, 1 it is added to `out`, 2 weights are gates, then ups: silu(gate) up.
#ifndef EPILOGUE
#define EPILOGUE 0
#endif

constexpr int WARP_ROWS = 2, WARP_COLUMNS = COLUMNS < 64 ? 2 : 4;
constexpr int THREADS = 32 * WARP_ROWS * WARP_COLUMNS;
constexpr int ROW_TILES = ROWS / 16 / WARP_ROWS;              // of a warp
constexpr int COLUMN_TILES = COLUMNS / 8 / WARP_COLUMNS;      // likewise, an even number
constexpr int PIECE = 64, PIECES = INNER / PIECE, STAGES = 4;
constexpr int OUT_COLUMNS = EPILOGUE == 2 ? COLUMNS / 2 : COLUMNS;
constexpr int X_STAGES = NORMED ? PIECES : STAGES;
static_assert(COLUMN_TILES % 2 == 0, "columns are read two tiles at a time");

// Normalises a row in place for each eight lanes: rows of a piece lie ROWS * PIECE apart from those of the next.
__device__ __forceinline__ void normalise(bf16* pieces, const bf16* norm, float eps) {
  const int lane = threadIdx.x % 8;
  for (int row = threadIdx.x / 8; row < ROWS; row += THREADS / 8) {
    float squares = 0;
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
      const Eight own = load_eight(pieces + piece * ROWS * PIECE + swizzled(row, lane * 8, PIECE));
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += to_float(own.at[i]) * to_float(own.at[i]);
    }
#pragma unroll
    for (int other = 1; other < 8; other *= 2) squares += __shfl_xor_sync(~0u, squares, other);
    const float scale = 1.0f / sqrtf(squares / INNER + eps);
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
      bf16* at = pieces + piece * ROWS * PIECE + swizzled(row, lane * 8, PIECE);
      Eight own = load_eight(at);
      const Eight factor = load_eight(norm + piece * PIECE + lane * 8);
#pragma unroll
      for (int i = 0; i < 8; ++i) own.at[i] = to_bf16(rounded(to_float(own.at[i]) * scale) * to_float(factor.at[i]));
      store_eight(at, own);
    }
  }
}

// x [rows, INNER], weight [columns of the product, INNER], out [rows, out_columns]. Grid: columns x rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    large_product(const bf16* x, const bf16* weight, const bf16* norm, float eps, int rows, int out_columns, bf16* out) {
  extern __shared__ __align__(128) bf16 shared[];
  bf16* own_x = shared;                                  // [piece or stage][row][PIECE]
  bf16* own_weight = own_x + X_STAGES * ROWS * PIECE;  // [stage][column][PIECE]
  start_next_kernel();
  const int first_column = blockIdx.x * OUT_COLUMNS, first_row = blockIdx.y * ROWS;
  const auto copy_weight = [&](int piece) {
    bf16* to = own_weight + piece % STAGES * COLUMNS * PIECE;
    for (int at = threadIdx.x; at < COLUMNS * 8; at += THREADS) {
      const int row = at / 8, k = at % 8 * 8;
      // Of a gated product tiles of eight gates and of their ups take turns.
      const bool is_up = EPILOGUE == 2 && row / 8 % 2;
      const int column = first_column + (EPILOGUE == 2 ? row / 16 * 8 + row % 8 : row);
      const bool is_there = column < out_columns;
      const long long from = column + (is_up ? (long long)out_columns : 0);
      copy_async(to + swizzled(row, k, PIECE), weight + (is_there ? from * INNER + piece * PIECE + k : 0), is_there);
    }
  };
  const auto copy_x = [&](int piece) {
    bf16* to = own_x + piece % X_STAGES * ROWS * PIECE;
    for (int at = threadIdx.x; at < ROWS * 8; at += THREADS) {
      const int row = at / 8, k = at % 8 * 8;
      const bool is_there = first_row + row < rows;
      const long long from = (long long)(first_row + row) * INNER + piece * PIECE + k;
      copy_async(to + swizzled(row, k, PIECE), x + (is_there ? from : 0), is_there);
    }
  };
#pragma unroll
  for (int piece = 0; piece < STAGES - 1 && piece < PIECES; ++piece) copy_weight(piece);
  commit_copies();

  wait_for_kernels_before();
  if (NORMED) {
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) copy_x(piece);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    normalise(own_x, norm, eps);
  } else {
#pragma unroll
    for (int piece = 0; piece < STAGES - 1; ++piece) {
      if (piece < PIECES) copy_x(piece);
      commit_copies();
    }
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int own_row = warp / WARP_COLUMNS * ROW_TILES * 16, own_column = warp % WARP_COLUMNS * COLUMN_TILES * 8;
  float sums[ROW_TILES][COLUMN_TILES][4] = {};
  for (int piece = 0; piece < PIECES; ++piece) {
    // All but the two pieces begun last are there, and nobody reads the place of the next one any more.
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    if (piece + STAGES - 1 < PIECES) {
      copy_weight(piece + STAGES - 1);
      if (!NORMED) copy_x(piece + STAGES - 1);
    }
    commit_copies();
    const bf16* of_x = own_x + piece % X_STAGES * ROWS * PIECE;
    const bf16* of_weight = own_weight + piece % STAGES * COLUMNS * PIECE;
#pragma unroll
    for (int k = 0; k < PIECE; k += 16) {
      unsigned a[ROW_TILES][4], b[COLUMN_TILES / 2][4];
#pragma unroll
      for (int row = 0; row < ROW_TILES; ++row) load_a(a[row], of_x, PIECE, own_row + row * 16, k);
#pragma unroll
      for (int pair = 0; pair < COLUMN_TILES / 2; ++pair) load_b(b[pair], of_weight, PIECE, own_column + pair * 16, k);
#pragma unroll
      for (int row = 0; row < ROW_TILES; ++row)
#pragma unroll
        for (int pair = 0; pair < COLUMN_TILES / 2; ++pair) {
          multiply(sums[row][2 * pair], a[row], b[pair][0], b[pair][1]);
          multiply(sums[row][2 * pair + 1], a[row], b[pair][2], b[pair][3]);
        }
    }
  }

  constexpr int STRIDE = EPILOGUE == 2 ? 2 : 1;
#pragma unroll
  for (int row_tile = 0; row_tile < ROW_TILES; ++row_tile)
#pragma unroll
    for (int tile = 0; tile < COLUMN_TILES; tile += STRIDE)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + own_row + row_tile * 16 + half * 8 + lane / 4;
        const int column = first_column + own_column / STRIDE + tile / STRIDE * 8 + (lane & 3) * 2;
        if (row >= rows || column >= out_columns) continue;
        unsigned* to = reinterpret_cast<unsigned*>(out + (long long)row * out_columns + column);
        float first = rounded(sums[row_tile][tile][2 * half]), second = rounded(sums[row_tile][tile][2 * half + 1]);
        if (EPILOGUE == 1) {
          const unsigned before = *to;
          first += lower_of(before), second += upper_of(before);
        }
        if (EPILOGUE == 2) {
          const float(&up)[4] = sums[row_tile][tile + STRIDE - 1];
          first = rounded(first / (1.0f + expf(-first))) * rounded(up[2 * half]);
          second = rounded(second / (1.0f + expf(-second))) * rounded(up[2 * half + 1]);
        }
        *to = to_bf16_pair(first, second);
      }
}
