// The two passes over features behind aft_delta in float32 on the CPU. Neither stores anything of
// the features' size: a block of columns is centred, weighted, transposed and used at once.
#pragma once
#include "../tensor/tensor.h"

namespace pupil::methods {

// Rows x_i = (f_i - mean) * w with the column means of f (n, d); w (d) or empty: 1. Means count
// from the first row: exact when all rows are equal. gram (n, n) = X X^T, mean (d) are overwritten.
void centred_gram(const Tensor& f, const Tensor& w, const Tensor& mean, const Tensor& gram);

// out_k = sum_ij m_ij x_ik x_jk for every column k; m (n, n) symmetric, out (d).
void centred_quadratic(const Tensor& f, const Tensor& w, const Tensor& mean, const Tensor& m,
                       const Tensor& out);

}  // namespace pupil::methods
