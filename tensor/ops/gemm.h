// The matrix product behind matmul, linear and attention.
#pragma once
#include "../onednn.h"

namespace pupil {

// c = a b + bias + beta c for a (..., m, k), b (..., k, n), c (..., m, n) of one dtype, but c may
// be f32 where a and b are bf16; any strides, so transposed operands cost nothing. bias (n), f32 or
// as c, or empty. Batch axes broadcast; where c has size 1 and an operand has not, the products are
// summed. With RowsDone c is a matrix.
void gemm(const Tensor& a, const Tensor& b, const Tensor& c, float beta = 0,
          const Tensor& bias = {}, const onednn::RowsDone& = {});

Tensor transposed(const Tensor&);  // a view without a graph: the last two axes swapped

// x (..., c) as (rows, c): a view if its rows lie evenly spaced, else a copy. No graph.
Tensor as_matrix(const Tensor& x);

// to (c) = column sums of the matrix g (rows, c) + beta to; to: as g, or f32.
void column_sum(const Tensor& g, const Tensor& to, float beta);

// The same while a product passes over the rows of g, f32 or bf16: add() as RowsDone, then
// finish(). The order of the sums depends on the shape only.
class ColumnSums {
 public:
  explicit ColumnSums(const Tensor& g);
  void add(int64_t begin, int64_t end) const;
  void finish(const Tensor& to, float beta) const;

 private:
  Tensor g_, partial_;  // (steps, c) f32
};

}  // namespace pupil
