// What conv2d shares with its adjoint, conv_transpose2d, and with nn::conv_norm. Nothing here is
// recorded.
#pragma once
#include "../onednn.h"
#include "../ops.h"

namespace pupil {

// The three products of a convolution in plain loops, or by oneDNN. Images come and go row-major.
Tensor convolution(const ConvGeometry&, const Tensor& x, const Tensor& weight,
                   const Tensor& bias = {});
Tensor convolution_input_gradient(const ConvGeometry&, const Tensor& gy, const Tensor& weight);
// to = gradient + beta to
void convolution_weight_gradient(const ConvGeometry&, const Tensor& x, const Tensor& gy,
                                 const Tensor& to, float beta);

// activation(conv2d(x, weight, bias) + residual), the last two when asked for, in one pass where a
// fast convolution and that activation are there. residual: shape of the result, any layout.
Tensor conv2d_tail(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions&,
                   const Tensor& residual, Activation);

template <class T>
const T* data_or_null(const Tensor& t) {
  return t ? t.data<T>() : nullptr;
}

}  // namespace pupil
