// The pieces of linear that an op of several layers is made of. No graph.
#pragma once
#include "../../autograd/autograd.h"
#include "gemm.h"

namespace pupil {

// Throws with the op's name unless linear takes these; the shape of its result.
Shape check_linear(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                   const Tensor& residual);

// y += residual, matrices; an empty residual: nothing to do.
onednn::RowsDone add_residual(const Tensor& y, const Tensor& residual);

// The gradients of y = x W^T + b for the cotangent g (rows, out): of the weight and the bias (null:
// there is none) where they are needed, then gx = g W + beta gx unless gx is empty, with `done` on
// its rows. x may be empty where the weight's gradient is not needed, weight where gx is empty.
void linear_backward(const Tensor& g, const Tensor& x, const Tensor& weight, Grad& of_weight,
                     Grad* of_bias, const Tensor& gx, float beta,
                     const onednn::RowsDone& done = {});

}  // namespace pupil
