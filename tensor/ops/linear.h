// The pieces of linear that an op of several layers is made of. No graph.
#pragma once
#include "../../autograd/autograd.h"
#include "gemm.h"

namespace pupil {

// Throws with the op's name unless linear takes these, x of this shape and dtype; the shape of its
// result.
Shape check_linear(const char* op, const Shape& x, DType dtype, const Tensor& weight,
                   const Tensor& bias, const Tensor& residual);

// y += residual, matrices; an empty residual: nothing to do.
onednn::RowsDone add_residual(const Tensor& y, const Tensor& residual);

// The gradients of y = x W^T + b for the cotangent g (rows, out): gx = g W + beta gx unless gx is
// empty, with `done` on its rows; then of the bias (null: there is none) and of the weight where
// they are needed. x may be empty where the weight's gradient is not needed, weight where gx is
// empty.
void linear_backward(const Tensor& g, const Tensor& x, const Tensor& weight, Grad& of_weight,
                     Grad* of_bias, const Tensor& gx, float beta,
                     const onednn::RowsDone& done = {});

}  // namespace pupil
