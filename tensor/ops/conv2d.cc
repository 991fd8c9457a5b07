#include "../../autograd/samples.h"
#include "../launch.h"
#include "../memory.h"
#include "../onednn.h"
#include "broadcast.h"
#include "convolution.h"
#include "depthwise.h"
#include "gemm.h"
#include "image.h"
#include "winograd.h"

namespace pupil {

template <class T>
struct ConvBiasGradient {
  int64_t batch, outputs, pixels;
  const T* gy;
  T* gb;
  float beta;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t o) const {
    using A = acc_t<T>;
    A sum = team.reduce(batch * pixels, A(0), Add{}, [&](int64_t p) {
      return A(gy[(p / pixels * outputs + o) * pixels + p % pixels]);
    });
    team.each(1, [&](int64_t) { gb[o] = T(beta == 0 ? sum : sum + A(beta) * A(gb[o])); });
  }
};

namespace {

int64_t out_side(int64_t side, int64_t kernel, int stride, int padding, int dilation) {
  int64_t reach = side + 2 * padding - dilation * (kernel - 1) - 1;
  return reach < 0 ? 0 : reach / stride + 1;
}

}  // namespace

ConvGeometry conv_geometry(const Shape& x, DType dtype, const Tensor& weight, const Tensor& bias,
                           const ConvOptions& options) {
  PUPIL_CHECK(x.rank == 4 && weight.rank() == 4, "conv2d: (n,c,h,w) and (out,c,kh,kw) expected, ",
              "got x ", x, ", weight ", weight.shape());
  int groups = options.groups;
  PUPIL_CHECK(groups > 0 && x[1] == weight.dim(1) * groups && weight.dim(0) % groups == 0 &&
                  (!bias || (bias.rank() == 1 && bias.dim(0) == weight.dim(0))),
              "conv2d: channels do not fit: x ", x, ", weight ", weight.shape(), ", groups ",
              groups, ", bias ", bias ? bias.shape() : Shape{});
  PUPIL_CHECK((weight.dtype() == dtype || weight.dtype() == acc_dtype(dtype)) &&
                  (!bias || bias.dtype() == weight.dtype()),
              "conv2d: x is ", name_of(dtype), ", weight ", name_of(weight.dtype()));
  const Pair &stride = options.stride, &padding = options.padding, &dilation = options.dilation;
  PUPIL_CHECK(stride.h > 0 && stride.w > 0 && padding.h >= 0 && padding.w >= 0 && dilation.h > 0 &&
                  dilation.w > 0,
              "conv2d: stride and dilation must be positive, padding not negative");
  int64_t out_height = out_side(x[2], weight.dim(2), stride.h, padding.h, dilation.h),
          out_width = out_side(x[3], weight.dim(3), stride.w, padding.w, dilation.w);
  PUPIL_CHECK(out_height > 0 && out_width > 0, "conv2d: kernel ", weight.shape(),
              " is larger than the padded image ", x);
  return {
      x[0],      x[1],          x[2],          x[3],       weight.dim(0), out_height,
      out_width, weight.dim(2), weight.dim(3), groups,     stride.h,      stride.w,
      padding.h, padding.w,     dilation.h,    dilation.w, weight.dim(1), weight.dim(0) / groups};
}

void check_residual(const Tensor& residual, const ConvGeometry& s, DType dtype) {
  Shape shape{s.batch, s.outputs, s.out_height, s.out_width};
  PUPIL_CHECK(!residual || (residual.shape() == shape && residual.dtype() == dtype),
              "a convolution's residual ", residual.shape(), " ", name_of(residual.dtype()),
              ", its result ", shape, " ", name_of(dtype));
}

namespace {

ConvGeometry check(const Tensor& x, const Tensor& weight, const Tensor& bias,
                   const ConvOptions& options) {
  require_floating("conv2d", x);
  return conv_geometry(x.shape(), x.dtype(), weight, bias, options);
}

// The layouts in which oneDNN is fast. An image that already has a layout keeps it; a picture with
// a few channels enters row-major as it is. In bf16 nhwc is as fast as any.
std::optional<onednn::Convolution> fast_layouts(const Tensor& x, const ConvGeometry& s,
                                                bool channels_last) {
  if (!cpu_fast(acc_dtype(x.dtype()), x.device()) || s.batch == 0) return {};
  bool blocks = cpu_has_avx512() && s.outputs % 16 == 0 && s.groups == 1 && x.dtype() == DType::f32;
  bool picture = x.layout() == Layout::strided && s.channels < 16 && !x.requires_grad();
  if (blocks && !channels_last && x.layout() != Layout::nhwc && (picture || s.channels % 16 == 0)) {
    onednn::Convolution conv{s, picture ? Layout::strided : Layout::nchw16c, Layout::nchw16c};
    if (onednn::has_convolution(conv)) return conv;
  }
  for (Layout in : {Layout::strided, Layout::nhwc}) {
    if (in == Layout::strided && !picture) continue;
    onednn::Convolution conv{s, in, Layout::nhwc, x.dtype()};
    if (onednn::has_convolution(conv)) return conv;
  }
  return {};
}

// Of the 144 products of a whole tile 36 are left; a tile that reaches over the border, or that is
// missing in a call for 14, costs as much as a whole one. Measured (AMD with AVX-512, 16 to 512
// channels): 1.2 to 3.2 times the direct sum where the tiles cover at most 1.6 times the results.
// The rule counts and does not time, so that the same program gives the same bits.
bool winograd_pays(const onednn::Convolution& conv) {
  const ConvGeometry& s = conv.shape;
  if (exact_mode() || !cpu_has_avx512() || conv.x != Layout::nchw16c || conv.y != Layout::nchw16c)
    return false;
  bool fits = s.kernel_height == 3 && s.kernel_width == 3 && s.stride_h == 1 && s.stride_w == 1 &&
              s.dilation_h == 1 && s.dilation_w == 1 && s.padding_h <= 2 && s.padding_w <= 2;
  int64_t tiles = s.batch * ((s.out_height + 3) / 4) * ((s.out_width + 3) / 4);
  int64_t covered = (tiles + 13) / 14 * 14 * 16;
  return fits && 5 * covered <= 8 * s.batch * s.out_height * s.out_width;
}

template <class T>
void bias_gradient(const ConvGeometry& s, const Tensor& gy, const Tensor& gb, float beta) {
  rows(gy.device(), s.outputs,
       ConvBiasGradient<T>{s.batch, s.outputs, s.out_height * s.out_width, gy.data<T>(),
                           gb.data<T>(), beta},
       s.batch * s.out_height * s.out_width);
}

Shape window(const ConvGeometry& s) {
  return {s.stride_h, s.stride_w, s.padding_h, s.padding_w, s.dilation_h, s.dilation_w};
}

Tensor scratch_for(const ConvGeometry& s) { return empty({winograd::scratch(s)}); }

void add_bias_gradient(const ConvGeometry& s, const Tensor& gy, const Tensor& gb, float beta) {
  if (gy.layout() == Layout::nhwc) {
    int64_t pixels = s.batch * s.out_height * s.out_width;
    return column_sum(alias(gy, {pixels, s.outputs}, {s.outputs, 1}), gb, beta);
  }
  bias_gradient<float>(s, in_layout(gy, Layout::strided), gb, beta);
}

Tensor product(const onednn::Convolution& conv, const Tensor& x, const Tensor& w,
               const Tensor& bias, const onednn::Tail& tail, PreparedKernels* prepared = nullptr) {
  const ConvGeometry& s = conv.shape;
  Tensor y = empty_image({s.batch, s.outputs, s.out_height, s.out_width}, x.dtype(), conv.y);
  Tensor b = bias ? bias.contiguous() : bias;
  const float *kernels = w.data<float>(), *offset = data_or_null<float>(b);
  if (winograd_pays(conv)) {
    if (prepared && !prepared->transformed) {
      ModelScope model;
      prepared->transformed = empty({winograd::transformed_size(s)});
      winograd::transform(s, kernels, prepared->transformed.data<float>());
    }
    winograd::forward(s, x.data<float>(), kernels, offset, y.data<float>(),
                      scratch_for(s).data<float>(), tail,
                      prepared ? prepared->transformed.data<float>() : nullptr);
  } else {
    bool done = onednn::convolution(conv, x.raw(), kernels, offset, y.raw(), tail,
                                    prepared ? prepared->packed.get() : nullptr);
    PUPIL_CHECK(done, "conv2d: no kernel for x ", x.shape(), ", weight ", w.shape());
  }
  return y;
}

Tensor conv2d_fast(const Tensor& input, const Tensor& weight, const Tensor& bias,
                   const onednn::Convolution& conv) {
  Tensor x = in_layout(input, conv.x).detach(), w = weight.contiguous().detach();
  Tensor y = product(conv, x, w, bias, {});
  bool winograd = winograd_pays(conv);
  std::vector<Tensor> inputs{input, weight};
  if (bias) inputs.push_back(bias);
  Tensor saved_x = weight.requires_grad() ? x : Tensor();
  if (!input.requires_grad()) w = Tensor();
  Layout input_layout = input.layout();
  return record("conv2d", y, inputs, {{"window", window(conv.shape)}}, [=](Backward& grad) {
    Tensor gy = in_layout(grad.gy, conv.y);
    float beta;
    if (grad.inputs.size() > 2 && grad[2].needed) {
      Tensor gb = grad[2].into(beta);
      add_bias_gradient(conv.shape, gy, gb, beta);
    } else if (grad.inputs.size() > 2)
      grad[2].none();
    if (grad[1].needed) {
      Tensor gw = grad[1].into(beta);
      if (winograd) {
        winograd::weight_gradient(conv.shape, saved_x.data<float>(), gy.data<float>(),
                                  gw.data<float>(), beta, scratch_for(conv.shape).data<float>());
      } else if (depthwise::has_weight_gradient(conv)) {
        Tensor scratch = empty({depthwise::scratch(conv.shape)});
        Tensor wide_x = saved_x.to(DType::f32), wide_gy = gy.to(DType::f32);
        depthwise::weight_gradient(conv.shape, wide_x.data<float>(), wide_gy.data<float>(),
                                   gw.data<float>(), beta, scratch.data<float>());
      } else {
        // Grouped ones in f32: in bf16 oneDNN 2.6.3 once gave infinities for 12 channels.
        bool widen = conv.shape.groups > 1;
        onednn::Convolution used = conv;
        if (widen) used.dtype = DType::f32;
        Tensor from = widen ? saved_x.to(DType::f32) : saved_x, to = widen ? gy.to(DType::f32) : gy;
        bool ok =
            onednn::convolution_weight_gradient(used, from.raw(), to.raw(), gw.data<float>(), beta);
        PUPIL_CHECK(ok, "conv2d: no weight gradient for x ", saved_x.shape(), ", weight ",
                    gw.shape());
      }
    } else
      grad[1].none();
    if (grad[0].needed) {
      const ConvGeometry& g = conv.shape;
      Tensor gx = conv.x == Layout::strided
                      ? empty({g.batch, g.channels, g.height, g.width}, gy.dtype())
                      : empty_image({g.batch, g.channels, g.height, g.width}, gy.dtype(), conv.x);
      if (winograd) {
        winograd::input_gradient(g, gy.data<float>(), w.data<float>(), gx.data<float>(),
                                 scratch_for(g).data<float>());
      } else {
        bool ok = onednn::convolution_input_gradient(conv, gy.raw(), w.data<float>(), gx.raw());
        PUPIL_CHECK(ok, "conv2d: no input gradient for x ", gx.shape(), ", weight ", w.shape());
      }
      grad[0].give(in_layout(gx, input_layout));
    } else
      grad[0].none();
  });
}

Tensor conv2d_plain(const Tensor& input, const Tensor& weight, const Tensor& bias,
                    const ConvGeometry& s) {
  Tensor x = input.contiguous().detach(), w = weight.contiguous().detach();
  Tensor y = convolution(s, x, w, bias);
  std::vector<Tensor> inputs{input, weight};
  if (bias) inputs.push_back(bias);
  Tensor saved_x = weight.requires_grad() ? x : Tensor();
  if (!input.requires_grad()) w = Tensor();
  Layout layout = input.layout();
  return record("conv2d", y, inputs, {{"window", window(s)}}, [=](Backward& grad) {
    Tensor gy = grad.gy.contiguous();
    float beta;
    if (grad.inputs.size() > 2 && grad[2].needed) {
      Tensor gb = grad[2].into(beta);
      dispatch(gy.dtype(),
               [&](auto t) { bias_gradient<typename decltype(t)::type>(s, gy, gb, beta); });
    } else if (grad.inputs.size() > 2)
      grad[2].none();
    if (grad[1].needed) {
      Tensor gw = grad[1].into(beta);
      convolution_weight_gradient(s, saved_x, gy, gw, beta);
    } else
      grad[1].none();
    if (grad[0].needed)
      grad[0].give(convolution_input_gradient(s, gy, w).to(layout));
    else
      grad[0].none();
  });
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const ConvOptions& options) {
  ConvGeometry s = check(x, weight, bias, options);
  auto conv = fast_layouts(x, s, options.channels_last);
  DType dtype = conv ? acc_dtype(x.dtype()) : x.dtype();
  Tensor w = to_dtype(weight, dtype), b = bias ? to_dtype(bias, dtype) : bias;
  return conv ? conv2d_fast(x, w, b, *conv) : conv2d_plain(x, w, b, s);
}

Tensor conv2d_tail(const Tensor& x, const ConvLayer& layer, const Tensor& residual) {
  NoGrad unrecorded;
  const auto& [weight, bias, options, activation, prepared] = layer;
  ConvGeometry s = check(x, weight, bias, options);
  check_residual(residual, s, x.dtype());
  if (auto conv = fast_layouts(x.detach(), s, options.channels_last)) {
    bool fused = onednn::follows_convolution(activation);
    Tensor added = residual ? in_layout(residual, conv->y) : residual;
    DType wide = acc_dtype(x.dtype());
    Tensor y = product(
        *conv, in_layout(x, conv->x), weight.contiguous().to(wide), bias ? bias.to(wide) : bias,
        {added ? added.raw() : nullptr, fused ? activation : Activation::none}, prepared.get());
    y = announce("conv2d_tail", y, {x, weight, bias, residual},
                 {{"window", window(s)}, {"activation", fused ? int(activation) : 0}});
    return fused ? y : activate(y, activation);
  }
  Tensor y = conv2d_plain(x, weight.to(x.dtype()), bias ? bias.to(x.dtype()) : bias, s);
  if (residual) y = add(y, residual);
  return activate(y, activation);
}

PUPIL_SAMPLES(conv2d) {
  auto with = [](ConvOptions options) {
    return [=](auto& v) {
      return to_strided(conv2d(v[0], v[1], v.size() > 2 ? v[2] : Tensor(), options));
    };
  };
  s.add("3x3", {{2, 3, 7, 9}, {4, 3, 3, 3}, {4}}, with({1, 1}));
  s.add("16 channels", {{2, 16, 5, 6}, {16, 16, 3, 3}, {16}}, with({1, 1}));
  s.add("32 channels", {{2, 32, 6, 6}, {32, 32, 3, 3}}, with({1, 1}));
  s.add("32 channels stride 2", {{2, 32, 6, 7}, {48, 32, 3, 3}}, with({2, 1}));
  s.add("7x7 stride 2", {{2, 3, 12, 11}, {5, 3, 7, 7}}, with({2, 3}));
  s.add("patches", {{2, 3, 8, 8}, {6, 3, 4, 4}, {6}}, with({4}));
  s.add("pointwise stride 2", {{2, 6, 7, 7}, {4, 6, 1, 1}}, with({2}));
  s.add("asymmetric", {{1, 2, 8, 11}, {3, 2, 1, 5}, {3}}, with({{2, 1}, {0, 2}}));
  s.add("groups", {{2, 4, 6, 6}, {6, 2, 3, 3}, {6}}, with({1, 1, 1, 2}));
  s.add("depthwise dilated", {{1, 5, 9, 8}, {5, 1, 3, 3}, {5}}, with({1, 2, 2, 5}));
  s.add("depthwise 5x5", {{2, 40, 6, 22}, {40, 1, 5, 5}}, with({1, 2, 1, 40}));
  s.add("depthwise 5x5 stride 2", {{2, 20, 9, 36}, {20, 1, 5, 5}}, with({2, 2, 1, 20}));
  s.add("depthwise 7x7", {{1, 16, 9, 22}, {16, 1, 7, 7}}, with({1, 3, 1, 16}));
  s.add("depthwise 7x7 stride 2", {{3, 17, 8, 7}, {17, 1, 7, 7}}, with({2, 3, 1, 17}));
  s.add("one", {{1, 1, 1, 1}, {1, 1, 1, 1}, {1}}, with({}));
  s.add("empty batch", {{0, 3, 4, 4}, {2, 3, 3, 3}, {2}}, with({1, 1}));
  s.add("permuted image", {{2, 5, 6, 3}, {4, 3, 3, 3}}, [](auto& v) {
    return to_strided(conv2d(permute(v[0], {0, 3, 1, 2}), v[1], Tensor(), {1, 1}));
  });
  s.add("two in a row", {{2, 3, 6, 6}, {16, 3, 3, 3}, {32, 16, 3, 3}}, [](auto& v) {
    return to_strided(conv2d(conv2d(v[0], v[1], Tensor(), {1, 1}), v[2], Tensor(), {2, 1}));
  });
  s.add_error("channels", {{2, 3, 7, 9}, {4, 4, 3, 3}}, with({}));
  s.add_error("kernel too large", {{2, 3, 2, 2}, {4, 3, 5, 5}}, with({}));
  s.add_error("bias", {{2, 3, 7, 9}, {4, 3, 3, 3}, {3}}, with({}));
}

}  // namespace pupil
