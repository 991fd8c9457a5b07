// The three products of a convolution, which its adjoint (conv_transpose2d) has in another order.
// Not recorded; images come and go row-major.
#pragma once
#include "../onednn.h"

namespace pupil {

Tensor convolution(const ConvGeometry&, const Tensor& x, const Tensor& weight,
                   const Tensor& bias = {});
Tensor convolution_input_gradient(const ConvGeometry&, const Tensor& gy, const Tensor& weight);
// to = gradient + beta to
void convolution_weight_gradient(const ConvGeometry&, const Tensor& x, const Tensor& gy,
                                 const Tensor& to, float beta);

}  // namespace pupil
