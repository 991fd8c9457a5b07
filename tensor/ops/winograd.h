// Convolution with 3x3 kernels and stride 1 after Winograd, F(4x4, 3x3): a tile of 4x4 results from
// 36 products a pair of channels in place of 144. Lavin and Gray, "Fast Algorithms for
// Convolutional Neural Networks", 2016. Images in nchw16c; only for a processor with AVX-512 and
// what `winograd_pays` in conv2d.cc lets through. Relative error (root of the mean square) 5e-7 to
// 2e-6, growing with the channels; that of the direct sum in float32 is 2e-7 to 6e-6, growing with
// the images in the gradient of the weights.
#pragma once
#include "../onednn.h"

namespace pupil::winograd {

// Floats of scratch memory that each of the three functions needs.
int64_t scratch(const ConvGeometry&);

// The kernels in the frequencies, for who multiplies by the same ones again.
int64_t transformed_size(const ConvGeometry&);  // floats
void transform(const ConvGeometry&, const float* weight, float* transformed);

// x (n, c, h, w), weight (o, c, 3, 3) row-major, bias (o) or null, y (n, o, oh, ow). `transformed`
// in place of the weight: not null.
void forward(const ConvGeometry&, const float* x, const float* weight, const float* bias, float* y,
             float* scratch, const onednn::Tail& = {}, const float* transformed = nullptr);
void input_gradient(const ConvGeometry&, const float* gy, const float* weight, float* gx,
                    float* scratch);
// gw = gradient + beta gw. The bits depend on the number of threads.
void weight_gradient(const ConvGeometry&, const float* x, const float* gy, float* gw, float beta,
                     float* scratch);

}  // namespace pupil::winograd
