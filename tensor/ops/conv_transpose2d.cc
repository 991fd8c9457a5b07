// The adjoint of conv2d: its forward is conv2d's input gradient, and the other way round.
#include "../../autograd/samples.h"
#include "broadcast.h"
#include "convolution.h"

namespace pupil {

namespace {

// Of the convolution that maps the output back to x.
ConvGeometry check(const Tensor& x, const Tensor& weight, const ConvOptions& o,
                   const Pair& output_padding) {
  PUPIL_CHECK(x.rank() == 4 && weight.rank() == 4 && o.groups > 0 && x.dim(1) == weight.dim(0) &&
                  x.dim(1) % o.groups == 0 && x.dtype() == weight.dtype(),
              "conv_transpose2d: x ", x.shape(), " ", name_of(x.dtype()), ", weight (c,out/groups,",
              "kh,kw) ", weight.shape(), " ", name_of(weight.dtype()), ", groups ", o.groups);
  auto side = [&](int axis, int stride, int padding, int dilation, int extra) {
    PUPIL_CHECK(stride > 0 && dilation > 0 && padding >= 0 && extra >= 0 &&
                    (extra < stride || extra < dilation),
                "conv_transpose2d: stride and dilation must be positive, padding not negative, ",
                "output padding ", extra, " below stride ", stride, " or dilation ", dilation);
    int64_t length = (x.dim(axis) - 1) * stride - 2 * padding +
                     int64_t(dilation) * (weight.dim(axis) - 1) + extra + 1;
    PUPIL_CHECK(x.dim(axis) > 0 && length > 0, "conv_transpose2d: no pixels for x ", x.shape(),
                ", weight ", weight.shape(), ", padding ", padding);
    return length;
  };
  ConvGeometry s{};
  s.batch = x.dim(0);
  s.channels = weight.dim(1) * o.groups;
  s.height = side(2, o.stride.h, o.padding.h, o.dilation.h, output_padding.h);
  s.width = side(3, o.stride.w, o.padding.w, o.dilation.w, output_padding.w);
  s.outputs = x.dim(1);
  s.out_height = x.dim(2);
  s.out_width = x.dim(3);
  s.kernel_height = weight.dim(2);
  s.kernel_width = weight.dim(3);
  s.groups = o.groups;
  s.stride_h = o.stride.h;
  s.stride_w = o.stride.w;
  s.padding_h = o.padding.h;
  s.padding_w = o.padding.w;
  s.dilation_h = o.dilation.h;
  s.dilation_w = o.dilation.w;
  s.group_channels = weight.dim(1);
  s.group_outputs = x.dim(1) / o.groups;
  return s;
}

}  // namespace

Tensor conv_transpose2d(const Tensor& input, const Tensor& weight, const Tensor& bias,
                        const ConvOptions& options, Pair output_padding) {
  require_floating("conv_transpose2d", input);
  ConvGeometry s = check(input, weight, options, output_padding);
  PUPIL_CHECK(!bias || bias.shape() == Shape{s.channels}, "conv_transpose2d: bias ",
              bias ? bias.shape() : Shape{}, " for ", s.channels, " channels");
  Tensor x = to_strided(input), w = weight.detach();
  Tensor saved_x = weight.requires_grad() ? x.detach() : Tensor();
  Tensor value = convolution_input_gradient(s, x, w);
  if (!x.requires_grad()) w = Tensor();
  Tensor y = record("conv_transpose2d", value, {x, weight}, [=](Backward& b) {
    if (b[0].needed)
      b[0].give(convolution(s, b.gy, w));
    else
      b[0].none();
    if (!b[1].needed) return b[1].none();
    float beta;
    Tensor gw = b[1].into(beta);
    convolution_weight_gradient(s, b.gy, saved_x, gw, beta);
  });
  return bias ? add(y, view(bias, {s.channels, 1, 1})) : y;
}

PUPIL_SAMPLES(conv_transpose2d) {
  auto with = [](ConvOptions options, Pair output_padding = 0) {
    return [=](auto& v) {
      return conv_transpose2d(v[0], v[1], v.size() > 2 ? v[2] : Tensor(), options, output_padding);
    };
  };
  s.add("4x4 stride 2", {{2, 3, 5, 4}, {3, 4, 4, 4}, {4}}, with({2, 1}));
  s.add("16 channels", {{2, 16, 3, 4}, {16, 16, 3, 3}, {16}}, with({2, 1}, 1));
  s.add("groups", {{1, 4, 4, 5}, {4, 3, 3, 3}, {6}}, with({2, 1, 1, 2}, 1));
  s.add("asymmetric", {{1, 2, 4, 5}, {2, 3, 2, 3}}, with({{2, 1}, {0, 1}, {1, 2}}, {1, 0}));
  s.add("output padding beyond the stride", {{1, 2, 3, 3}, {2, 1, 2, 2}}, with({1, 0, 3}, 2));
  s.add("one", {{1, 1, 1, 1}, {1, 1, 1, 1}, {1}}, with({}));
  s.add("empty batch", {{0, 3, 4, 4}, {3, 2, 3, 3}, {2}}, with({2, 1}));
  s.add("permuted image", {{2, 5, 6, 3}, {3, 4, 3, 3}}, [](auto& v) {
    return conv_transpose2d(permute(v[0], {0, 3, 1, 2}), v[1], {}, {2, 1});
  });
  s.add("after conv2d", {{2, 3, 6, 6}, {16, 3, 3, 3}, {16, 4, 2, 2}}, [](auto& v) {
    return conv_transpose2d(conv2d(v[0], v[1], Tensor(), {1, 1}), v[2], {}, {2});
  });
  s.add_error("channels", {{2, 3, 5, 4}, {4, 4, 3, 3}}, with({}));
  s.add_error("output padding", {{2, 3, 5, 4}, {3, 4, 3, 3}}, with({2}, 2));
  s.add_error("bias", {{2, 3, 5, 4}, {3, 4, 3, 3}, {3}}, with({}));
  s.add_error("padding", {{1, 1, 1, 1}, {1, 1, 1, 1}}, with({1, 1}));
}

}  // namespace pupil
