// Convolutions with one filter per channel, in nhwc, for a processor with AVX-512.
#pragma once
#include "../onednn.h"

namespace pupil::depthwise {

// One filter a channel, square, steps of 1 or 2, nhwc, and a processor with AVX-512.
bool is_plain(const onednn::Convolution&);

// The forward product, of 3x3 or 5x5. Where images come from memory it is as fast as oneDNN's; on
// what already lies in a core's cache 1.2 to 1.5 times (Intel, 32 to 192 channels, 3x3).
bool has_forward(const onednn::Convolution&);
int64_t packed_weights(const ConvGeometry&);  // floats
void pack_weights(const ConvGeometry&, const float* weight, float* packed);
// y (n, c, oh, ow) = activation(x * w + bias), by the calling thread alone. bias may be null; the
// activation is one of those that follow convolutions.
void forward(const ConvGeometry&, const float* x, const float* packed, const float* bias,
             Activation, float* y);

// The weight gradient, of 5x5 or 7x7; oneDNN has a fast one for 3x3 alone. Measured (AMD with
// AVX-512, 96 to 960 channels of 56 to 7 pixels, batch 16, one thread): 3.7 to 23 times as fast.
bool has_weight_gradient(const onednn::Convolution&);
int64_t scratch(const ConvGeometry&);  // floats of memory that it needs

// x (n, c, h, w), gy (n, c, oh, ow), gw (c, 1, k, k) = gradient + beta gw. The bits do not depend
// on the number of threads.
void weight_gradient(const ConvGeometry&, const float* x, const float* gy, float* gw, float beta,
                     float* scratch);

}  // namespace pupil::depthwise
