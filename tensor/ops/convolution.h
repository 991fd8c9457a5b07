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

// The sizes of conv2d, checked. x: its shape.
ConvGeometry conv_geometry(const Shape& x, DType, const Tensor& weight, const Tensor& bias,
                           const ConvOptions&);

// Throws unless it is empty or has the shape of the result and this dtype.
void check_residual(const Tensor& residual, const ConvGeometry&, DType);

// What a layer whose weights stay as they are keeps of them, in the orders of the kernels. One
// thread at a time.
struct PreparedKernels {
  std::shared_ptr<onednn::PackedWeights> packed = onednn::pack_later();
  Tensor transformed;  // winograd.h
};

struct ConvLayer {
  Tensor weight, bias;
  ConvOptions options;
  Activation activation = Activation::none;
  std::shared_ptr<PreparedKernels> prepared = nullptr;  // null: nothing is kept
};
// activation(conv2d(x, weight, bias) + residual), the last two when asked for, in one pass where a
// fast convolution and that activation are there. residual: shape of the result, dtype of x, any
// layout.
Tensor conv2d_tail(const Tensor& x, const ConvLayer&, const Tensor& residual);
// conv2d_tail of one layer after the other, of the last with the residual.
Tensor conv2d_chain(const Tensor& x, const std::vector<ConvLayer>&, const Tensor& residual);

template <class T>
const T* data_or_null(const Tensor& t) {
  return t ? t.data<T>() : nullptr;
}

}  // namespace pupil
