// Compiled for AVX-512 (lanes.h).
#include "attention_fast.h"

#include <math.h>
#include <omp.h>

#include "../runtime.h"
#include "lanes.h"
#include "vector_math.h"

namespace pupil::packed_attention {

int64_t Geometry::row() const { return (tokens + 15) / 16 * 16; }

#ifdef __AVX512F__
namespace {

constexpr int64_t kBlock = 120;  // rows of scores at a time: a multiple of the rows of every tile

// What the next head will read: `width` floats of every row of one or two matrices. They come into
// the core's cache while this head computes, or it would wait for them a third of its time.
struct NextRows {
  const float *first, *second;
  int64_t rows, row, width;

  // Inline always: g++ 12 drops a call of what only prefetches.
  [[gnu::always_inline]] void fetch(int64_t begin, int64_t end, int64_t parts) const {
    const float* matrices[] = {first, second};
    for (int64_t i = rows * begin / parts; i < rows * end / parts; i++)
      for (const float* matrix : matrices)
        for (int64_t j = 0; matrix && j < width; j += kLanes)
          _mm_prefetch(matrix + i * row + j, _MM_HINT_T1);
  }
};

// c (ROWS, 16 COLUMNS) = a (ROWS, depth) b (depth, 16 COLUMNS); a[i][k] = a[i * a_row + k *
// a_column].
template <int ROWS, int COLUMNS>
void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
          int64_t b_row, float* c, int64_t c_row) {
  Lanes sum[ROWS][COLUMNS];
#pragma GCC unroll 24
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 5
    for (int j = 0; j < COLUMNS; j++) sum[i][j] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k++, a += a_column, b += b_row) {
    Lanes row[COLUMNS];
#pragma GCC unroll 5
    for (int j = 0; j < COLUMNS; j++) row[j] = _mm512_loadu_ps(b + j * kLanes);
#pragma GCC unroll 24
    for (int i = 0; i < ROWS; i++) {
      Lanes x = _mm512_set1_ps(a[i * a_row]);
#pragma GCC unroll 5
      for (int j = 0; j < COLUMNS; j++) sum[i][j] = _mm512_fmadd_ps(x, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 5
    for (int j = 0; j < COLUMNS; j++) _mm512_storeu_ps(c + i * c_row + j * kLanes, sum[i][j]);
}

// The last rows are computed twice rather than in a smaller tile.
template <int ROWS, int COLUMNS>
void tiles(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_column,
           const float* b, int64_t b_row, float* c, int64_t c_row, const NextRows& next,
           int64_t group, int64_t groups) {
  if (rows < ROWS) {
    for (int64_t i = 0; i < rows; i++)
      tile<1, COLUMNS>(depth, a + i * a_row, 0, a_column, b, b_row, c + i * c_row, 0);
    return;
  }
  for (int64_t i = 0; i < rows; i += ROWS) {
    int64_t top = smaller(i, rows - ROWS);
    next.fetch(group * rows + i, group * rows + smaller(i + ROWS, rows), groups * rows);
    tile<ROWS, COLUMNS>(depth, a + top * a_row, a_row, a_column, b, b_row, c + top * c_row, c_row);
  }
}

// c (rows, columns) = a (rows, depth) b (depth, columns), for a multiple of 16 columns. The tiles
// fill the 32 registers.
void product(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row,
             int64_t a_column, const float* b, int64_t b_row, float* c, int64_t c_row,
             const NextRows& next) {
  constexpr decltype(&tiles<1, 1>) of_columns[] = {tiles<24, 1>, tiles<12, 2>, tiles<8, 3>,
                                                   tiles<6, 4>, tiles<5, 5>};
  int64_t vectors = columns / kLanes, groups = (vectors + 4) / 5;
  for (int64_t group = 0; group < groups; group++) {
    int64_t first = vectors * group / groups, last = vectors * (group + 1) / groups;
    of_columns[last - first - 1](rows, depth, a, a_row, a_column, b + first * kLanes, b_row,
                                 c + first * kLanes, c_row, next, group, groups);
  }
}

// to (columns, 16 * ceil(rows / 16)) = the transpose of a (rows, columns), padded with zeros.
void transpose(int64_t rows, int64_t columns, const float* a, int64_t a_row, float* to) {
  int64_t to_row = blocks_of(rows) * kLanes;
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes) {
      Lanes x[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; r++)
        x[r] = i + r < rows ? _mm512_loadu_ps(a + (i + r) * a_row + j) : _mm512_setzero_ps();
      // Of every two blocks of `side` lanes in rows `side` apart, those off the diagonal change
      // places. An index from 16 on means the second operand.
      const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
      for (int side = 8; side > 0; side /= 2) {
        __m512i sides = _mm512_set1_epi32(side),
                second = _mm512_add_epi32(lane, _mm512_set1_epi32(16));
        __mmask16 right = _mm512_test_epi32_mask(lane, sides);
        __m512i upper = _mm512_mask_sub_epi32(lane, right, second, sides);
        __m512i lower = _mm512_mask_mov_epi32(_mm512_add_epi32(lane, sides), right, second);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; r++)
          if (!(r & side)) {
            Lanes top = x[r], bottom = x[r + side];
            x[r] = _mm512_permutex2var_ps(top, upper, bottom);
            x[r + side] = _mm512_permutex2var_ps(top, lower, bottom);
          }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; r++) _mm512_storeu_ps(to + (j + r) * to_row + i, x[r]);
    }
}

// Every lane becomes op of all. (The forms without a mask make g++ 12 warn of its own header.)
template <class Op>
inline Lanes fold(Lanes x, Op op) {
  x = op(x, _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0x4e));
  x = op(x, _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0xb1));
  x = op(x, _mm512_maskz_permute_ps(0xffff, x, 0x4e));
  return op(x, _mm512_maskz_permute_ps(0xffff, x, 0xb1));
}

// Rows of scores become softmax(scale * row), with zeros in the padding.
void softmax_rows(float* scores, int64_t rows, int64_t columns, int64_t row, float scale) {
  auto mask = [=](int64_t j) { return mask_of(columns - j); };
  for (int64_t i = 0; i < rows; i++, scores += row) {
    Lanes maxima = _mm512_set1_ps(-INFINITY), sums = _mm512_setzero_ps();
    for (int64_t j = 0; j < row; j += kLanes)
      maxima = _mm512_mask_max_ps(maxima, mask(j), _mm512_loadu_ps(scores + j), maxima);
    float max = _mm512_cvtss_f32(fold(maxima, [](Lanes a, Lanes b) { return a > b ? a : b; }));
    for (int64_t j = 0; j < row; j += kLanes) {
#pragma omp simd
      for (int64_t l = j; l < j + kLanes; l++)
        scores[l] = vector_exp_negative((scores[l] - max) * scale);
      Lanes e = _mm512_maskz_loadu_ps(mask(j), scores + j);
      sums += e;
      _mm512_storeu_ps(scores + j, e);
    }
    Lanes factor = 1.0f / fold(sums, [](Lanes a, Lanes b) { return a + b; });
    for (int64_t j = 0; j < row; j += kLanes)
      _mm512_storeu_ps(scores + j, factor * _mm512_loadu_ps(scores + j));
  }
}

// Rows of the gradient g of the probabilities p become that of the unscaled scores, scale * p (g -
// <p, g>).
void softmax_rows_backward(const float* p, float* g, int64_t rows, int64_t row, float scale) {
  for (int64_t i = 0; i < rows; i++, p += row, g += row) {
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < row; j++) dot += p[j] * g[j];
#pragma omp simd
    for (int64_t j = 0; j < row; j++) g[j] = scale * p[j] * (g[j] - dot);
  }
}

float scale_of(const Geometry& g) { return 1 / sqrtf(float(g.width)); }

// Of a head's first row and column among rows of `row` floats.
int64_t offset(const Geometry& g, int64_t head, int64_t row) {
  return head / g.heads * g.tokens * row + head % g.heads * g.width;
}

int64_t scratch_of_thread(const Geometry& g) { return (g.width + g.tokens) * g.row(); }

}  // namespace

bool available(const Geometry& g) { return cpu_has_avx512() && g.width % 16 == 0; }

int64_t scratch(const Geometry& g) { return cpu_threads() * scratch_of_thread(g); }

void forward(const Geometry& g, const float* qkv, float* probabilities, float* y, float* scratch) {
  int64_t tokens = g.tokens, width = g.width, row = g.row(), y_row = g.heads * width,
          qkv_row = 3 * y_row;
  int64_t blocks = (tokens + kBlock - 1) / kBlock, all = g.batch * g.heads * blocks;
#pragma omp parallel num_threads(cpu_threads())
  {
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    float *keys = scratch + thread * scratch_of_thread(g), *own_rows = keys + width * row;
    int64_t head_of_keys = -1;
    for (int64_t i = all * thread / threads; i < all * (thread + 1) / threads; i++) {
      int64_t head = i / blocks, top = i % blocks * kBlock, rows = smaller(kBlock, tokens - top);
      const float *q = qkv + offset(g, head, qkv_row), *next = qkv + offset(g, head + 1, qkv_row);
      int64_t wanted = i % blocks == blocks - 1 && head + 1 < g.batch * g.heads ? tokens : 0;
      if (head != head_of_keys) transpose(tokens, width, q + y_row, qkv_row, keys);
      head_of_keys = head;
      float* p = probabilities ? probabilities + (head * tokens + top) * row : own_rows;
      product(rows, row, width, q + top * qkv_row, qkv_row, 1, keys, row, p, row,
              {next, next + y_row, wanted, qkv_row, width});
      softmax_rows(p, rows, tokens, row, scale_of(g));
      product(rows, width, tokens, p, row, 1, q + 2 * y_row, qkv_row,
              y + offset(g, head, y_row) + top * y_row, y_row,
              {next + 2 * y_row, nullptr, wanted, qkv_row, width});
    }
  }
}

void backward(const Geometry& g, const float* qkv, const float* probabilities, const float* gy,
              float* gqkv, float* scratch) {
  int64_t tokens = g.tokens, width = g.width, row = g.row(), y_row = g.heads * width,
          qkv_row = 3 * y_row;
#pragma omp parallel num_threads(cpu_threads())
  {
    float* values = scratch + omp_get_thread_num() * scratch_of_thread(g);
    float* gs = values + width * row;  // of the scores
#pragma omp for schedule(static)
    for (int64_t head = 0; head < g.batch * g.heads; head++) {
      const float *q = qkv + offset(g, head, qkv_row), *k = q + y_row, *v = k + y_row;
      const float *p = probabilities + head * tokens * row, *gy_head = gy + offset(g, head, y_row);
      float *gq = gqkv + offset(g, head, qkv_row), *gk = gq + y_row, *gv = gk + y_row;
      const float* next = qkv + offset(g, head + 1, qkv_row);
      int64_t wanted = head + 1 < g.batch * g.heads ? tokens : 0;
      transpose(tokens, width, v, qkv_row, values);
      product(tokens, row, width, gy_head, y_row, 1, values, row, gs, row,
              {next + 2 * y_row, nullptr, wanted, qkv_row, width});
      softmax_rows_backward(p, gs, tokens, row, scale_of(g));
      product(tokens, width, tokens, gs, row, 1, k, qkv_row, gq, qkv_row,
              {next, next + y_row, wanted, qkv_row, width});
      product(tokens, width, tokens, gs, 1, row, q, qkv_row, gk, qkv_row,
              {p + tokens * row, nullptr, wanted, row, row});
      product(tokens, width, tokens, p, 1, row, gy_head, y_row, gv, qkv_row,
              {gy + offset(g, head + 1, y_row), nullptr, wanted, y_row, width});
    }
  }
}

#else
bool available(const Geometry&) { return false; }
int64_t scratch(const Geometry&) { return 0; }
void forward(const Geometry&, const float*, float*, float*, float*) {}
void backward(const Geometry&, const float*, const float*, const float*, float*, float*) {}
#endif

}  // namespace pupil::packed_attention
