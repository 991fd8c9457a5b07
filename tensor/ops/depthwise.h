// The weight gradient of a convolution with one filter of 5x5 or 7x7 per channel, in nhwc, for a
// processor with AVX-512. oneDNN has a fast one for 3x3 alone; measured (AMD with AVX-512, 96 to
// 960 channels of 56 to 7 pixels, batch 16, one thread): 3.7 to 23 times as fast. Its other
// products are as fast as ours were.
#pragma once
#include "../onednn.h"

namespace pupil::depthwise {

bool has_weight_gradient(const onednn::Convolution&);
int64_t scratch(const ConvGeometry&);  // floats of memory that it needs

// x (n, c, h, w), gy (n, c, oh, ow), gw (c, 1, k, k) = gradient + beta gw. The bits do not depend
// on the number of threads.
void weight_gradient(const ConvGeometry&, const float* x, const float* gy, float* gw, float beta,
                     float* scratch);

}  // namespace pupil::depthwise
